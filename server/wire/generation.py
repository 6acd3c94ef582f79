"""What a job that generates asks for, and how the news of its answers are written as named arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.batch import NO_TOKEN
from server.wire.job import Array, Ragged, Result, join_rows
from server.wire.processors import Processor

EarlyStopping = bool | Literal["never"]
FinishReason = Literal["", "stop", "length"]
REASONS: tuple[FinishReason, ...] = ("", "stop", "length")
"""By the number that crosses the wire."""


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """What is wanted of each prompt. Everything is in tokens; texts (stop strings) are the HTTP side's business."""

    max_tokens: int
    """New tokens, as far as the model's context has room for them; 0 only looks at the prompt."""
    num_sequences: int = 1
    """Answers to generate: OpenAI's n, or best_of."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    processors: tuple[Processor, ...] = ()
    """What else is wanted of the tokens that come next."""
    stop_token_ids: tuple[int, ...] = ()
    """The model's own end tokens included, unless they are to be ignored. A stop token ends the answer and is its last
    token."""
    seed: int | None = None
    """The same seed gives the same answer, whatever else is in the batch. None: a new one for each prompt."""
    num_logprobs: int = -1
    """-1: none; 0: of the tokens; k: and of the k most probable ones."""
    num_prompt_logprobs: int = -1
    """The same for the prompt's tokens but the first."""
    probe: tuple[int, int] | None = None
    """(place, token): how probable that token is behind the prompt's token number `place`, which is told in place of
    the prompt's logprobs."""
    beam_width: int = 0
    """Over 0: beam search, `num_sequences` (at most beam_width) best answers, all given at the end."""
    length_penalty: float = 1.0
    """Beam search: scores are sums of logprobs divided by length ** length_penalty."""
    early_stopping: EarlyStopping = False
    """Beam search: end as soon as there are beam_width answers (True), once the best beam would be no better if it
    ended here (False), or once none can become better however long it grows ("never")."""
    beam_groups: int = 1
    """Of beam_width beams, which it divides; over 1: diverse beam search."""
    diversity_penalty: float = 0.0
    """What a token's score loses for each beam of the groups before that goes on with the same one."""
    coverage_penalty: float = 0.0
    """Beam search, of models that tell the weights of cross-attention: scores have this times the coverage of the
    source added, see `BeamSearch`."""
    align_from: int | None = None
    """Of such models: the weights of the prompt's tokens from this one on are told, at its end."""
    grammar: tuple[Literal["", "json_schema", "regex", "json"], str] = ("", "")
    """What the answer must conform to: any JSON, a JSON schema (as JSON text), or a regular expression."""

    @property
    def num_rows(self) -> int:
        """Most sequences that one prompt ever has at one time."""
        return max(self.num_sequences, self.beam_width, 1)

    @property
    def num_prompt_top(self) -> int:
        """Most probable tokens that are told beside a logprob of the prompt."""
        return max(self.num_prompt_logprobs, 0)

    @property
    def asks_about_prompt(self) -> bool:
        """For logprobs in it."""
        return self.num_prompt_logprobs >= 0 or self.probe is not None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's logprob, and the most probable tokens in its place: packed, as answers hold thousands of them."""

    logprob: float
    top_ids: bytes = b""
    """int32, the most probable first."""
    top_logprobs: bytes = b""
    """float64, one for each of them."""

    @property
    def top(self) -> list[tuple[int, float]]:
        """(token, logprob), the most probable first."""
        ids, logprobs = np.frombuffer(self.top_ids, np.int32), np.frombuffer(self.top_logprobs, np.float64)
        return list(zip(ids.tolist(), logprobs.tolist(), strict=True))


def pack_logprob(logprob: float, top_ids: Array, top_logprobs: Array) -> TokenLogprob:
    """Both arrays may be filled up with NO_TOKEN."""
    found = top_ids != NO_TOKEN
    ids, logprobs = top_ids[found].astype(np.int32), top_logprobs[found].astype(np.float64)
    return TokenLogprob(logprob, ids.tobytes(), logprobs.tobytes())


@dataclass(frozen=True, slots=True)
class AnswerNews:
    """News of one answer: its next tokens, and at its end why it ended."""

    row: int
    """Which answer of the job: those to the first prompt come first."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token where they were asked for."""
    finish_reason: FinishReason = ""
    num_cached_tokens: int = 0
    """In a prompt's very first news: how many of its tokens were in the prefix cache."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """In a prompt's very first news, where asked for: of its tokens from the second on."""
    score: float | None = None
    """Of a beam search's answer: its sum of logprobs, divided by length ** length_penalty."""
    cross_weights: Array | None = None
    """In a prompt's very first news, where asked for: fp32 `[num_tokens, num_heads, num_keys]`, how much its tokens
    from `align_from` on look at each token of the source."""


def write_news(news: Sequence[AnswerNews], *, is_last: bool) -> Result:
    """Arrays that would be empty are left out: most news are one token of one answer."""
    if all(len(item.token_ids) == 1 for item in news):
        arrays = {"token_ids": Ragged(np.array([item.token_ids[0] for item in news], np.int32))}
    else:
        arrays = {"token_ids": join_rows([np.array(item.token_ids, np.int32) for item in news])}
    if any(item.finish_reason for item in news):
        arrays["finish_reasons"] = Ragged(np.array([REASONS.index(item.finish_reason) for item in news], np.int8))
    if any(item.num_cached_tokens for item in news):
        arrays["num_cached_tokens"] = Ragged(np.array([item.num_cached_tokens for item in news], np.int32))
    if any(item.logprobs for item in news):
        arrays |= write_logprobs("", [item.logprobs for item in news])
    if any(item.prompt_logprobs for item in news):
        arrays |= write_logprobs("prompt_", [item.prompt_logprobs for item in news])
    if any(item.score is not None for item in news):
        scores = [np.nan if item.score is None else item.score for item in news]
        arrays["scores"] = Ragged(np.array(scores, np.float64))
    if news[0].cross_weights is not None:
        splits = np.zeros(len(news) + 1, np.int32)
        splits[1:] = len(news[0].cross_weights)
        arrays["cross_weights"] = Ragged(news[0].cross_weights, splits)
    return Result(np.array([item.row for item in news], np.int32), arrays, is_last)


def read_news(result: Result) -> list[AnswerNews]:
    """What `write_news` was given."""
    arrays = result.arrays
    reasons, cached = arrays.get("finish_reasons"), arrays.get("num_cached_tokens")
    return [
        AnswerNews(
            int(row),
            tuple(arrays["token_ids"].row(place).tolist()),
            read_logprobs("", arrays, place),
            REASONS[int(reasons.values[place])] if reasons is not None else "",
            int(cached.values[place]) if cached is not None else 0,
            read_logprobs("prompt_", arrays, place),
            read_score(arrays, place),
            read_weights(arrays, place),
        )
        for place, row in enumerate(result.rows)
    ]


def read_score(arrays: dict[str, Ragged], place: int) -> float | None:
    score = float(arrays["scores"].values[place]) if "scores" in arrays else np.nan
    return None if np.isnan(score) else score


def read_weights(arrays: dict[str, Ragged], place: int) -> Array | None:
    return arrays["cross_weights"].row(place) if "cross_weights" in arrays and place == 0 else None


def write_logprobs(prefix: str, rows: Sequence[Sequence[TokenLogprob]]) -> dict[str, Ragged]:
    """float64 `[num_tokens]` of the tokens, int32 and float64 `[num_tokens, k]` of the most probable ones, filled up
    with NO_TOKEN."""
    found = [logprob for row in rows for logprob in row]
    tops = [np.frombuffer(logprob.top_ids, np.int32) for logprob in found]
    width = max(map(len, tops))
    top_ids = np.full((len(found), width), NO_TOKEN, np.int32)
    top_logprobs = np.full((len(found), width), np.nan, np.float64)
    for place, (ids, logprob) in enumerate(zip(tops, found, strict=True)):
        top_ids[place, : len(ids)] = ids
        top_logprobs[place, : len(ids)] = np.frombuffer(logprob.top_logprobs, np.float64)
    splits = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    return {
        f"{prefix}logprobs": Ragged(np.array([logprob.logprob for logprob in found], np.float64), splits),
        f"{prefix}top_ids": Ragged(top_ids, splits),
        f"{prefix}top_logprobs": Ragged(top_logprobs, splits),
    }


def read_logprobs(prefix: str, arrays: dict[str, Ragged], place: int) -> tuple[TokenLogprob, ...]:
    if f"{prefix}logprobs" not in arrays:
        return ()
    logprobs, *tops = (arrays[f"{prefix}{name}"].row(place) for name in ("logprobs", "top_ids", "top_logprobs"))
    return tuple(map(pack_logprob, logprobs.tolist(), *tops))
