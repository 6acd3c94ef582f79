"""What OpenAI's `/v1/audio/transcriptions` and `/v1/audio/translations` take: a form with a file in it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from server.errors import InvalidField
from server.http.api.fields import Label, ModelName
from server.http.body import check_object
from server.http.multipart import FormValue, UploadedFile

MAX_PROMPT_CHARS = 4096
"""A model reads the last 224 tokens of it."""
ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
STREAMED: tuple[ResponseFormat, ...] = ("json", "text")
Granularity = Literal["word", "segment"]


def check_file(given: Any) -> UploadedFile:
    if not isinstance(given, UploadedFile):
        raise PydanticCustomError("file", "must be a file: one part of the form, with a filename")
    return given


def make_list(given: Any) -> Any:
    """Of what came once, without the brackets that lists have."""
    return given if isinstance(given, list) else [given]


class AudioRequest(BaseModel):
    """Form of both routes. Everything in it but the file is text."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    file: Annotated[
        UploadedFile, PlainValidator(check_file), WithJsonSchema({"type": "string", "format": "binary"})
    ] = Field(description="wav, flac, mp3, ogg, opus, m4a, aac or webm; found out from what is in it.")
    model: ModelName | None = Field(None, description="Needed only where several models transcribe.")
    language: Label | None = Field(
        None, description="Of the speech, as ISO 639-1 has it; found out if absent.", examples=["en"]
    )
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = Field(
        None, description="What was said before, or words that may come, as they are to be written."
    )
    response_format: ResponseFormat = "json"
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.0, description="0: the most probable words, and higher temperatures where those seem to be wrong."
    )
    timestamp_granularities: Annotated[
        list[Granularity], Field(fail_fast=True, max_length=2), BeforeValidator(make_list)
    ] = Field([], description="Of verbose_json: `word`, and `segment`, which it has anyway.")
    stream: bool = Field(False, description="Text as it is found, as events. For json and text.")
    include: Annotated[list[Label], Field(fail_fast=True, max_length=1), BeforeValidator(make_list)] = Field(
        [], description="Nothing can be included."
    )

    @property
    def has_words(self) -> bool:
        return "word" in self.timestamp_granularities


def read_request(form: Mapping[str, FormValue]) -> AudioRequest:
    """A field that is there and empty is as good as absent. Raises InvalidField."""
    asked = check_object(AudioRequest, {name: value for name, value in form.items() if value != ""})
    if asked.timestamp_granularities and asked.response_format != "verbose_json":
        raise InvalidField(
            f"timestamp_granularities are for verbose_json, and response_format is {asked.response_format}; set it to "
            "verbose_json or leave them out",
            param="timestamp_granularities",
        )
    if asked.stream and asked.response_format not in STREAMED:
        raise InvalidField(
            f"stream is for {' and '.join(STREAMED)}, and response_format is {asked.response_format}; set stream to "
            "false or choose another format",
            param="stream",
        )
    if asked.include:
        raise InvalidField(
            "include is not supported; leave it out. verbose_json has an avg_logprob for each segment", param="include"
        )
    return asked
