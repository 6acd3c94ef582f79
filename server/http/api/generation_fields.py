"""What `/v1/completions` and `/v1/chat/completions` take alike: OpenAI's fields, and those of other servers' clients.

null is as good as absent everywhere. What fields mean together is checked in `generation_params`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from server.http.api.fields import Label, ModelName, Options, Priority, TokenIds

MAX_SEQUENCES = 128
"""Most answers to one prompt."""
MAX_LOGPROBS = 20
MAX_STOPS, MAX_STOP_CHARS = 16, 1000

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
MAX_STOP_TOKENS, MAX_BIASES, MAX_BAD_WORDS = 64, 1024, 256
"""They are looked at for every token of every answer."""
MAX_BAD_WORD_CHARS = 256
MAX_GRAMMAR_CHARS = 65_536

Temperature = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=0.01, le=100, allow_inf_nan=False)]
LengthPenalty = Annotated[float, Field(strict=True, ge=-10, le=10, allow_inf_nan=False)]
Penalty = Annotated[float, Field(strict=True, ge=-2, le=2, allow_inf_nan=False)]
Sequences = Annotated[StrictInt, Field(ge=1, le=MAX_SEQUENCES)]
Count = Annotated[StrictInt, Field(ge=0)]
StopText = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
BadWord = Annotated[str, Field(max_length=MAX_BAD_WORD_CHARS)]
Biases = Annotated[dict[str, Number], Field(fail_fast=True, max_length=MAX_BIASES)]


class GenerationFields(BaseModel):
    """The shared part of both bodies."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: ModelName | None = Field(None, description="Needed only where several models generate.")
    max_tokens: Count | None = None
    min_tokens: Count | None = Field(None, description="No end before so many tokens.")

    n: Sequences | None = Field(None, description="Answers to each prompt; 1 if absent.")
    best_of: Sequences | None = Field(
        None, description="So many are generated, and the n with the highest logprob per token are given."
    )
    temperature: Temperature | None = Field(None, description="1 if absent; 0: always the most probable token.")
    top_p: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        None, description="1 if absent; 0: always the most probable token."
    )
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = Field(None, description="0 and -1: no limit.")
    min_p: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="The same seed gives the same answer; a random one if absent."
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Factor | None = None
    logit_bias: Biases | None = Field(
        None, description=f"an object from up to {MAX_BIASES} token ids to numbers -100 to 100"
    )

    stop: StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=MAX_STOPS)] | None = Field(
        None,
        union_mode="left_to_right",
        description=f"a text or a list of up to {MAX_STOPS} texts, of up to {MAX_STOP_CHARS} characters each",
    )
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_TOKENS)] | None = None
    include_stop_str_in_output: StrictBool | None = None
    ignore_eos: StrictBool | None = Field(None, description="The model's end tokens do not end the answer.")
    skip_special_tokens: StrictBool | None = Field(None, description="Special tokens are no text; true if absent.")
    bad_words: Annotated[list[BadWord], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] | None = Field(
        None, description="Words that are not generated."
    )

    use_beam_search: StrictBool | None = None
    beam_width: Sequences | None = Field(None, description="best_of, or n, if absent.")
    length_penalty: LengthPenalty | None = Field(None, description="Scores are divided by length ** this; 1 if absent.")
    early_stopping: StrictBool | Literal["never"] | None = Field(
        None, union_mode="left_to_right", description='true, false (if absent) or "never", as transformers has them'
    )

    response_format: Options | None = Field(
        None, description="an object with type text, json_object, or json_schema and json_schema.schema"
    )
    regex: Annotated[str, Field(max_length=MAX_GRAMMAR_CHARS)] | None = Field(
        None, description="A regular expression that the whole answer matches."
    )

    stream: StrictBool | None = None
    stream_options: Options | None = Field(
        None, description="an object; include_usage true: one more chunk before the end holds the number of tokens"
    )
    return_token_ids: StrictBool | None = Field(None, description="Choices also have token_ids.")
    priority: Priority = None
    user: Label | None = None

    @property
    def num_answers(self) -> int:
        """Answers to each prompt that the client sees."""
        return self.n or 1

    @property
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.get("include_usage"))
