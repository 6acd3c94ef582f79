"""Text to text: a decoder writes an answer to a text that an encoder has read. Translations and summaries are such."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.info import ModelInfo
from models.seq2seq_info import Seq2SeqInfo
from models.translation import TASK_PREFIX, TranslationInfo
from server.config import ModelConfig
from server.errors import InvalidField
from server.tasks.generate import describe_graph, reduce
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Task
from server.wire.generation import EarlyStopping, GenerationParams
from server.wire.job import TokenArray
from server.wire.processors import (
    BadWords,
    ForcedBegin,
    ForcedEnd,
    MinTokens,
    NoRepeatNgrams,
    NoSourceNgrams,
    Processor,
    SuppressedAtBegin,
    SuppressedTokens,
)

SUMMARIZATION = "summarization"
"""A name in `task_specific_params`."""
MAX_NGRAM = 64
"""Longest runs of tokens that may be kept from coming again."""
USUAL_MAX_TOKENS = 256
"""Of an answer, where neither the client nor the model's directory says anything."""


@dataclass(frozen=True, slots=True)
class DecodingWish:
    """How a client wants answers to be found. None: as the model's directory has it, else as transformers would do."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    num_answers: int = 1
    """The best of a search, or so many samples."""
    beam_width: int | None = None
    """1: the most probable token each time."""
    length_penalty: float | None = None
    coverage_penalty: float = 0.0
    beam_groups: int = 1
    diversity_penalty: float = 0.0
    """Between groups of beams, so that answers differ."""
    early_stopping: EarlyStopping | None = None
    temperature: float | None = None
    """Over 0: tokens are drawn, and there are no beams."""
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    forced_begin: int | None = None
    """The first token of the answer, such as its language."""


Purpose = Literal["translation", "summarization", "text2text-generation"]
"""As Hugging Face's hub calls what a model is for."""
TRANSLATORS, SUMMARIZERS = ("M2M100", "MBart", "Marian"), ("Pegasus",)
"""Families that are for nothing else."""


def find_purpose(info: ModelInfo, translation: TranslationInfo) -> Purpose:
    """By the family, else by the only task that config.json has settings for."""
    kinds: set[Purpose] = {"translation" for name in translation.task_names if name.startswith(TASK_PREFIX)}
    kinds |= {"summarization" for name in translation.task_names if name == SUMMARIZATION}
    if info.architecture.startswith(TRANSLATORS):
        kinds = {"translation"}
    elif info.architecture.startswith(SUMMARIZERS):
        kinds = {"summarization"}
    return kinds.pop() if len(kinds) == 1 else "text2text-generation"


def find_summary_prefix(translation: TranslationInfo) -> str:
    """The words that tell a model to summarise, as T5 was trained; empty for models that do nothing else."""
    return translation.task_prefixes.get(SUMMARIZATION, "")


def begin_answer(info: ModelInfo) -> TokenArray:
    """What each answer goes on from: the token that decoding starts with."""
    return np.array([find_rules(info).decoder_start_token_id], np.int32)


def find_rules(info: ModelInfo) -> Seq2SeqInfo:
    assert info.seq2seq is not None, "Only encoder-decoders answer. This is a bug."
    return info.seq2seq


def settle_params(info: ModelInfo, wish: DecodingWish) -> GenerationParams:
    """Raises InvalidField, naming a field of the wish, where the decoder has no room for what is wanted."""
    rules = find_rules(info)
    width, is_drawn = choose_beam_width(rules, wish), bool(wish.temperature)
    max_tokens = choose_max_tokens(rules, wish)
    num_beams = 1 if is_drawn else width
    if wish.coverage_penalty:
        check_coverage(rules, is_search=num_beams > 1)
    check_groups(wish, num_beams)
    return GenerationParams(
        max_tokens,
        num_sequences=wish.num_answers,
        temperature=wish.temperature or 0.0,
        top_k=wish.top_k,
        top_p=wish.top_p,
        seed=wish.seed,
        repetition_penalty=choose(wish.repetition_penalty, rules.repetition_penalty),
        processors=tuple(list_processors(rules, wish, max_tokens)),
        stop_token_ids=info.eos_token_ids,
        beam_width=0 if num_beams == 1 else num_beams,
        beam_groups=wish.beam_groups,
        diversity_penalty=wish.diversity_penalty,
        length_penalty=choose(wish.length_penalty, rules.length_penalty),
        coverage_penalty=wish.coverage_penalty,
        early_stopping=rules.early_stopping if wish.early_stopping is None else wish.early_stopping,
    )


def choose(wanted: float | None, usual: float) -> float:
    return usual if wanted is None else wanted


def choose_beam_width(rules: Seq2SeqInfo, wish: DecodingWish) -> int:
    """Raises InvalidField where there are fewer beams than answers, or beams where tokens are drawn."""
    if wish.temperature:
        if (wish.beam_width or 1) > 1:
            raise InvalidField(
                "temperature draws tokens, and beam_width over 1 searches; leave one of them out", param="beam_width"
            )
        return 1
    if wish.beam_width is None:
        return max(rules.num_beams, wish.num_answers)
    if wish.beam_width < wish.num_answers:
        raise InvalidField(
            f"beam_width is {wish.beam_width} and n is {wish.num_answers}; raise beam_width to at least n",
            param="beam_width",
        )
    return wish.beam_width


def check_coverage(rules: Seq2SeqInfo, *, is_search: bool) -> None:
    """Raises InvalidField."""
    if not is_search:
        raise InvalidField(
            "coverage_penalty is for beam searches; set beam_width to 2 or more and no temperature, or leave "
            "coverage_penalty out",
            param="coverage_penalty",
        )
    if not rules.has_coverage:
        raise InvalidField(
            "coverage_penalty needs weights of cross-attention, which this model was started without; leave it out, or "
            "start the server with coverage_penalty: true for this model",
            param="coverage_penalty",
        )


def check_groups(wish: DecodingWish, num_beams: int) -> None:
    """Raises InvalidField."""
    if num_beams % wish.beam_groups:
        raise InvalidField(
            f"beam_groups is {wish.beam_groups}, and of {num_beams} beams there cannot be so many equal groups; choose "
            "a beam_width that is a multiple of beam_groups",
            param="beam_groups",
        )
    if (wish.beam_groups > 1) != (wish.diversity_penalty > 0):
        raise InvalidField(
            "diversity_penalty and beam_groups go together: groups without a penalty are all the same; set "
            "beam_groups to 2 or more and diversity_penalty over 0, or leave both out",
            param="diversity_penalty",
        )


def choose_max_tokens(rules: Seq2SeqInfo, wish: DecodingWish) -> int:
    """New tokens. Raises InvalidField."""
    room = rules.max_target_tokens - 1
    if wish.max_tokens is not None:
        if wish.max_tokens > room:
            raise InvalidField(
                f"max_tokens is {wish.max_tokens}; this model writes at most {room} tokens. Lower it",
                param="max_tokens",
            )
        return wish.max_tokens
    usual = USUAL_MAX_TOKENS if rules.max_length is None else rules.max_length - 1
    return max(1, min(usual, room))


def list_processors(rules: Seq2SeqInfo, wish: DecodingWish, max_tokens: int) -> Iterator[Processor]:
    """Raises InvalidField."""
    first = rules.forced_bos_token_id if wish.forced_begin is None else wish.forced_begin
    if first is not None:
        yield ForcedBegin(first)
    if rules.forced_eos_token_ids:
        yield ForcedEnd(rules.forced_eos_token_ids)
    if rules.suppress_tokens:
        yield SuppressedTokens(rules.suppress_tokens)
    if rules.begin_suppress_tokens:
        yield SuppressedAtBegin(rules.begin_suppress_tokens, 0 if first is None else 1)
    if rules.bad_words_ids:
        yield BadWords(rules.bad_words_ids)
    size = rules.no_repeat_ngram_size if wish.no_repeat_ngram_size is None else wish.no_repeat_ngram_size
    if size:
        yield NoRepeatNgrams(size)
    if rules.encoder_no_repeat_ngram_size:
        yield NoSourceNgrams(rules.encoder_no_repeat_ngram_size)
    # Of a directory's least and a client's most the client's counts.
    least = min(max(rules.min_length - 1, 0), max_tokens) if wish.min_tokens is None else wish.min_tokens
    if least > max_tokens:
        raise InvalidField(
            f"min_tokens is {least}, and at most {max_tokens} tokens are written; lower it or raise max_tokens",
            param="min_tokens",
        )
    if least:
        yield MinTokens(least)


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this model writes answers")


def describe_output(info: ModelInfo) -> str:
    return f"answers of up to {find_rules(info).max_target_tokens - 1} tokens"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example("/v1/translate", {"model": name, "text": "How are you?"})


HEAD = Head("text2text", Work.ENCODE_DECODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="text2text",
    heads=("text2text",),
    params=GenerationParams,
    routes=("POST /v1/translate", "POST /v1/summarize", "POST /v1/completions", "POST /models/{model}"),
    reduce=reduce,
)
