"""Hugging Face's inference payloads for encoder-decoders: translations, summaries, and what else they write."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt

from server.errors import EmptyInput, InvalidField
from server.http.api.fields import Label, Options
from server.http.api.generation_fields import Count, Factor, LengthPenalty, Sequences, Temperature
from server.http.api.hf_request import InferenceRequest, read_parameters
from server.http.call import Call, Reply, reply_json
from server.http.deadline import allow_generation
from server.http.endpoint import check_places
from server.http.state import ServedModel, ServerState
from server.http.writing import Writing, Written, write_texts
from server.tasks.text2text import MAX_NGRAM, DecodingWish, Purpose, find_purpose, find_summary_prefix
from server.text.clean_up import clean_up
from server.text.languages import Instruction
from server.text.sentences import keep_whole
from server.text.work import Truncation

KEYS: Mapping[Purpose, str] = {
    "translation": "translation_text",
    "summarization": "summary_text",
    "text2text-generation": "generated_text",
}
TRUNCATIONS: Mapping[str, Truncation] = {"do_not_truncate": "error", "longest_first": "right", "only_first": "right"}
USUAL_TOP_K = 50
"""transformers', where tokens are drawn."""


class Text2Text(BaseModel):
    """Parameters for encoder-decoders, as transformers' pipelines and `generate` name them. What is absent is as the
    directory says. `generate_parameters`: more of them."""

    src_lang: Label | None = None
    tgt_lang: Label | None = None
    max_new_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_length: Annotated[StrictInt, Field(ge=2)] | None = None
    min_new_tokens: Count | None = None
    min_length: Count | None = None
    num_beams: Sequences | None = None
    num_return_sequences: Sequences | None = None
    length_penalty: LengthPenalty | None = None
    early_stopping: StrictBool | Literal["never"] | None = None
    do_sample: StrictBool | None = None
    temperature: Temperature | None = None
    top_k: Count | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    repetition_penalty: Factor | None = None
    no_repeat_ngram_size: Annotated[StrictInt, Field(ge=0, le=MAX_NGRAM)] | None = None
    clean_up_tokenization_spaces: StrictBool | None = None
    truncation: Literal["do_not_truncate", "longest_first", "only_first"] | None = None
    generate_parameters: Options | None = None

    @property
    def most_name(self) -> str:
        """What says how many tokens are written at most: of the two the one that counts."""
        return "max_length less 1" if self.max_new_tokens is None and self.max_length is not None else "max_new_tokens"

    @property
    def least_name(self) -> str:
        return "min_length less 1" if self.min_new_tokens is None and self.min_length is not None else "min_new_tokens"

    @property
    def wish(self) -> DecodingWish:
        """Lengths count the token that decoding starts with, numbers of new tokens do not. What is for drawing is of
        no effect without do_sample, as in transformers."""
        is_drawn = bool(self.do_sample)
        return DecodingWish(
            max_tokens=leave_out_first(self.max_new_tokens, self.max_length, least=1),
            min_tokens=leave_out_first(self.min_new_tokens, self.min_length, least=0),
            num_answers=self.num_return_sequences or 1,
            beam_width=self.num_beams,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            temperature=(1.0 if self.temperature is None else self.temperature) if is_drawn else None,
            top_k=(USUAL_TOP_K if self.top_k is None else self.top_k) if is_drawn else 0,
            top_p=1.0 if self.top_p is None or not is_drawn else self.top_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )


def leave_out_first(num_new: int | None, length: int | None, *, least: int) -> int | None:
    return max(length - 1, least) if num_new is None and length is not None else num_new


async def write_for_texts(call: Call, state: ServerState, model: ServedModel, asked: InferenceRequest) -> Reply:
    """A list of answers to a text; of several texts as many, or a list of lists where each has several answers."""
    allow_generation(call, state.config.server)
    wanted = read_all(asked.parameters)
    texts = asked.list_texts()
    check_texts(texts, model)
    with naming_parameters(wanted):
        purpose, instruction = instruct(model, wanted)
        truncation = model.config.limits.truncation if wanted.truncation is None else TRUNCATIONS[wanted.truncation]
        splits = [keep_whole(text) for text in texts]
        writing = Writing(splits, wanted.wish, instruction, "inputs", truncation)
        written = await write_texts(call, state, model, writing)
    replies = [[format_answer(answer, purpose, wanted) for answer in answers] for answers in written.answers]
    if isinstance(asked.inputs, list) and wanted.wish.num_answers > 1:
        return reply_json(replies)
    return reply_json([reply for answers in replies for reply in answers])


def read_all(given: dict[str, Any] | None) -> Text2Text:
    """`generate_parameters` among the others. Raises InvalidField."""
    more = read_parameters(Text2Text, given).generate_parameters or {}
    return read_parameters(Text2Text, (given or {}) | more)


def check_texts(texts: list[str], model: ServedModel) -> None:
    """Raises EmptyInput, InvalidField."""
    check_places(len(texts), model, "inputs")
    for index, text in enumerate(texts):
        if not text.strip():
            place = f"inputs[{index}]" if len(texts) > 1 else "inputs"
            raise EmptyInput(f"{place} must not be empty", param="inputs")


def instruct(model: ServedModel, wanted: Text2Text) -> tuple[Purpose, Instruction]:
    """Who names a language wants a translation. Raises InvalidField."""
    languages = model.languages
    assert languages is not None, "Every encoder-decoder of texts has them. This is a bug."
    purpose = find_purpose(model.info, languages.info)
    if wanted.src_lang is not None or wanted.tgt_lang is not None or purpose == "translation":
        return "translation", languages.instruct(wanted.src_lang, wanted.tgt_lang)
    is_summary = purpose == "summarization"
    return purpose, Instruction(prefix=find_summary_prefix(languages.info) if is_summary else "")


@contextmanager
def naming_parameters(wanted: Text2Text) -> Iterator[None]:
    """Bodies of errors have nothing but a text: in it, fields are called as clients know them."""
    names = {
        "source_language": "src_lang",
        "target_language": "tgt_lang",
        "beam_width": "num_beams",
        "n": "num_return_sequences",
        "temperature": "do_sample",
        "max_tokens": wanted.most_name,
        "min_tokens": wanted.least_name,
    }
    try:
        yield
    except InvalidField as error:
        # Not what stands in quotes, nor among others in a list: that is the client's, or a language.
        written = re.compile(rf"(?<!['\w])(?<!, )({'|'.join(names)})(?!['\w])")
        message = written.sub(lambda found: names[found[0]], error.message)
        raise type(error)(message) from error


def format_answer(answer: Written, purpose: Purpose, wanted: Text2Text) -> dict[str, str]:
    text = clean_up(answer.text) if wanted.clean_up_tokenization_spaces else answer.text
    return {KEYS[purpose]: text}
