"""From a request's fields to what the engine is asked for. Every contradiction is refused here, with its remedy."""

import json
import re
from typing import Any, Literal

from server.errors import InvalidField
from server.http.api.generation_fields import MAX_BIASES, MAX_GRAMMAR_CHARS, MAX_STOPS, GenerationFields
from server.http.state import ServedModel
from server.text.text_stream import TextRules
from server.wire.generation import GenerationParams
from server.wire.processors import LogitBias

Grammar = tuple[Literal["", "json_schema", "regex", "json"], str]

MAX_BIAS = 100.0
ANY_OBJECT = '{"type": "object"}'


def build_params(
    asked: GenerationFields, model: ServedModel, *, num_logprobs: int, num_prompt_logprobs: int = -1
) -> GenerationParams:
    """All but what depends on the prompt. Raises InvalidField."""
    check_sampling(asked)
    beam_width = choose_beam_width(asked)
    num_sequences = asked.num_answers if beam_width else asked.best_of or asked.num_answers
    is_ranked = num_sequences > asked.num_answers
    vocab_size = model.info.output_dim
    is_greedy = asked.top_p == 0
    biases = read_logit_bias(asked.logit_bias or {}, vocab_size)
    return GenerationParams(
        max_tokens=0,
        num_sequences=num_sequences,
        temperature=0.0 if is_greedy else 1.0 if asked.temperature is None else asked.temperature,
        top_k=min(max(asked.top_k or 0, 0), vocab_size),
        top_p=1.0 if asked.top_p is None or is_greedy else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        processors=(LogitBias(tuple(biases), tuple(biases.values())),) if biases else (),
        stop_token_ids=choose_stop_tokens(asked, model),
        num_logprobs=max(num_logprobs, 0) if is_ranked else num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        beam_width=beam_width,
        length_penalty=1.0 if asked.length_penalty is None else asked.length_penalty,
        early_stopping=asked.early_stopping or False,
        grammar=choose_grammar(asked),
        seed=asked.seed,
    )


def build_rules(asked: GenerationFields, model: ServedModel) -> TextRules:
    """What becomes of the tokens on our side. Raises InvalidField."""
    return TextRules(
        stop=read_stop(asked.stop, model),
        include_stop=bool(asked.include_stop_str_in_output),
        skip_special_tokens=asked.skip_special_tokens is not False,
        min_tokens=asked.min_tokens or 0,
        stop_token_ids=choose_stop_tokens(asked, model),
    )


def check_sampling(asked: GenerationFields) -> None:
    """Fields that are right each for itself. Raises InvalidField."""
    if asked.best_of is not None and asked.best_of < asked.num_answers:
        raise InvalidField(
            f"best_of is {asked.best_of} and n is {asked.num_answers}; raise best_of to at least n, or leave it out",
            param="best_of",
        )
    if asked.stream and (asked.best_of or 0) > asked.num_answers and not asked.use_beam_search:
        raise InvalidField(
            "best_of over n cannot be streamed: the best are known at the end. Set stream to false or lower best_of",
            param="best_of",
        )
    if asked.stream_options is not None and not asked.stream:
        raise InvalidField("stream_options is for streams; set stream to true or leave it out", param="stream_options")
    if not isinstance((asked.stream_options or {}).get("include_usage", False), bool | None):
        raise InvalidField("stream_options.include_usage must be true or false", param="stream_options.include_usage")
    if asked.max_tokens is not None and asked.min_tokens is not None and asked.min_tokens > asked.max_tokens:
        raise InvalidField(
            f"min_tokens is {asked.min_tokens} and max_tokens is {asked.max_tokens}; lower min_tokens or raise "
            "max_tokens",
            param="min_tokens",
        )


def choose_beam_width(asked: GenerationFields) -> int:
    """0 where no beam search is wanted. Raises InvalidField."""
    if not asked.use_beam_search:
        given = {
            "beam_width": asked.beam_width is not None,
            "early_stopping": bool(asked.early_stopping),
            "length_penalty": asked.length_penalty not in (None, 1),
        }
        for name, is_given in given.items():
            if is_given:
                raise InvalidField(
                    f"{name} is for beam search; set use_beam_search to true or leave it out", param=name
                )
        return 0
    if asked.stream:
        raise InvalidField(
            "stream is not for beam search, whose answers are known at the end; set stream to false", param="stream"
        )
    sampling = {"temperature": (0,), "top_p": (1,), "top_k": (-1, 0), "min_p": (0,)}
    for name, neutral in sampling.items():
        value = getattr(asked, name)
        if value is not None and value not in neutral:
            raise InvalidField(
                f"{name} is for sampling, and use_beam_search is true; leave one of them out", param=name
            )
    width = asked.beam_width or asked.best_of or asked.num_answers
    if width < asked.num_answers:
        raise InvalidField(
            f"beam_width is {width} and n is {asked.num_answers}; raise beam_width to at least n", param="beam_width"
        )
    return width


def choose_stop_tokens(asked: GenerationFields, model: ServedModel) -> tuple[int, ...]:
    """The client's and the model's own. Raises InvalidField."""
    given = asked.stop_token_ids or []
    for token_id in given:
        check_token(token_id, model.info.output_dim, "stop_token_ids")
    own = () if asked.ignore_eos else model.info.eos_token_ids
    return tuple(dict.fromkeys([*given, *own]))


def check_token(token_id: int, vocab_size: int, field: str) -> None:
    if not 0 <= token_id < vocab_size:
        raise InvalidField(
            f"{field} has the token id {token_id}; ids of this model go from 0 to {vocab_size - 1}", param=field
        )


def read_logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    """JSON's keys are texts. Raises InvalidField."""
    if len(given) > MAX_BIASES:
        raise InvalidField(f"logit_bias has {len(given)} tokens; the limit is {MAX_BIASES}", param="logit_bias")
    biases = {}
    for key, value in given.items():
        if not re.fullmatch(r"[0-9]{1,18}", key):
            raise InvalidField(
                f"logit_bias has the key {key[:50]!r}; keys must be token ids, as '50256'", param="logit_bias"
            )
        check_token(int(key), vocab_size, "logit_bias")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise InvalidField(f"logit_bias[{key}] is {value}; it must be from -100 to 100", param="logit_bias")
        biases[int(key)] = value
    return biases


def read_stop(given: str | list[str] | None, model: ServedModel) -> tuple[str, ...]:
    """Raises InvalidField."""
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > MAX_STOPS:
        raise InvalidField(f"stop has {len(stops)} texts; the limit is {MAX_STOPS}", param="stop")
    if "" in stops:
        raise InvalidField("stop has an empty text; leave it out", param="stop")
    if stops and not model.tokenizer.knows_texts:
        raise InvalidField("stop is text, but this model has no tokenizer; use stop_token_ids", param="stop")
    return tuple(stops)


def choose_grammar(asked: GenerationFields) -> Grammar:
    """Whether the engine understands it is found out there. Raises InvalidField."""
    grammar = read_response_format(asked.response_format or {"type": "text"})
    if asked.regex is not None:
        if grammar != ("", ""):
            raise InvalidField("regex and response_format cannot both be kept; leave one of them out", param="regex")
        grammar = ("regex", asked.regex)
    for field in ("min_tokens", "ignore_eos"):
        if grammar != ("", "") and getattr(asked, field):
            raise InvalidField(
                f"{field} goes on where the grammar of regex or response_format ends; leave {field} out", param=field
            )
    return grammar


def read_response_format(given: dict[str, Any]) -> Grammar:
    """Raises InvalidField."""
    kind = given.get("type")
    if kind == "text":
        return ("", "")
    if kind == "json_object":
        return ("json_schema", ANY_OBJECT)
    if kind != "json_schema":
        raise InvalidField(
            "response_format.type must be text, json_object or json_schema", param="response_format.type"
        )
    wrapper = given.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise InvalidField(
            "response_format.json_schema.schema must be there and hold a JSON schema, which is an object",
            param="response_format.json_schema",
        )
    text = json.dumps(schema)
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidField(
            f"the schema has {len(text)} characters; the limit is {MAX_GRAMMAR_CHARS}", param="response_format"
        )
    return ("json_schema", text)
