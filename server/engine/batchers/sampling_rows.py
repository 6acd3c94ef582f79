"""Which rows of logits a step has to give, whose they are, and how each becomes a token. Pure numpy."""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.batch import (
    NO_TOKEN,
    BoolArray,
    Counted,
    History,
    IntArray,
    OnlyTokens,
    Sampling,
    SparseBias,
    TimestampRule,
    TokenMasks,
    TokenRanges,
)
from server.engine.batchers.counters import Counter, Counters
from server.engine.batchers.logits_processors import NOTHING, Past, RowRules, collect_rules
from server.engine.batchers.part import Part
from server.engine.batchers.sequences import Generation, Sequence
from server.engine.batchers.uniforms import draw_uniforms


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits: after the token at `token_row` of the batch, as if `num_drafts` of the part's drafts were so.

    `index`: the answer that the token is for. `forced_id`: a token of the prompt whose logprob is wanted.
    """

    part: Part
    token_row: int
    index: int
    num_drafts: int = 0
    forced_id: int = NO_TOKEN

    @property
    def generation(self) -> Generation:
        return self.part.generation

    @property
    def sequence(self) -> Sequence:
        return self.part.sequence

    @property
    def drafts(self) -> tuple[int, ...]:
        return self.part.drafts[: self.num_drafts]

    @property
    def has_penalties(self) -> bool:
        params = self.generation.params
        if self.forced_id != NO_TOKEN:
            return False
        return params.repetition_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)

    @property
    def is_countable(self) -> bool:
        """Whether what stands before it is what its sequence says: no drafts, and no beam, whose sequence is another in
        each step."""
        return self.has_penalties and not self.drafts and self.generation.beams is None

    @property
    def is_ranked(self) -> bool:
        """By a beam search."""
        return self.forced_id == NO_TOKEN and self.generation.beams is not None

    @property
    def num_generated(self) -> int:
        """Tokens of the answer before this one."""
        return self.generation.count_generated(self.sequence) + self.num_drafts

    @property
    def past(self) -> Past:
        generation = self.generation
        return Past(
            self.sequence.token_ids,
            self.drafts,
            generation.num_prompt_tokens,
            generation.max_new_tokens,
            generation.params.stop_token_ids,
            NOTHING if generation.source is None else generation.source.arrays.get("input_ids", NOTHING),
        )


def list_rows(parts: Seq[Part]) -> list[Row]:
    """In the order of the parts, as they are packed end to end."""
    rows: list[Row] = []
    first = 0
    for part in parts:
        computed = part.num_past_tokens
        asked = max(computed, part.generation.asked_places.start)
        for place in range(asked, asked + part.num_prompt_rows):
            rows.append(Row(part, first + place - computed, 0, forced_id=part.generation.find_asked(place)))
        first += part.num_tokens
        if part.is_complete and part.generation.params.max_tokens > 0:
            last = first - 1 - len(part.drafts)
            for index in list_answers(part):
                rows += [Row(part, last + drafts, index, drafts) for drafts in range(len(part.drafts) + 1)]
    return rows


def list_answers(part: Part) -> range:
    """The answers that a token is chosen for: all of them where the prompt has just been computed."""
    generation = part.generation
    if generation.has_forked or generation.beams is not None:
        return range(part.sequence.index, part.sequence.index + 1)
    return range(generation.params.num_sequences)


def build_sampling(rows: Seq[Row], vocab_size: int, counters: Counters | None = None) -> Sampling:
    """`counters`: of an engine that counts tokens; what it is told now counts as counted."""
    counted = None if counters is None else build_counted(rows, counters)
    params = [row.generation.params for row in rows]
    rules = collect_row_rules(rows)
    # What is forced, and what a beam search ranks, is not drawn.
    is_drawn = [row.forced_id == NO_TOKEN and not row.is_ranked for row in rows]
    temperatures = [p.temperature if drawn else 0.0 for p, drawn in zip(params, is_drawn, strict=True)]
    numbers = [(p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params]
    top_p, min_p, repetition, presence, frequency = np.array(numbers, np.float32).reshape(-1, 5).T
    return Sampling(
        temperature=np.array(temperatures, np.float32),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=top_p,
        min_p=min_p,
        uniforms=draw_row_uniforms(rows) if any(temperatures) else np.zeros(len(rows)),
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        num_top=np.array([count_top(row) for row in rows], np.int32),
        forced_ids=np.array([row.forced_id for row in rows], np.int64),
        is_ranked=np.array([row.is_ranked for row in rows], bool),
        bias=build_bias(rules),
        history=build_history(rows, set() if counted is None else set(counted.rows.tolist())),
        counted=counted,
        masks=build_masks(rows, vocab_size),
        only=build_only(rules),
        ranges=build_ranges(rules, vocab_size),
        timestamps=build_timestamps(rules),
    )


def draw_row_uniforms(rows: Seq[Row]) -> npt.NDArray[np.float64]:
    """One for each row, by its request's seed, its answer and how far that is."""
    seeds = [row.generation.seed for row in rows]
    return draw_uniforms(seeds, [row.index for row in rows], [row.num_generated for row in rows])


def count_top(row: Row) -> int:
    if row.forced_id != NO_TOKEN:
        return row.generation.params.num_prompt_top
    if row.generation.beams is not None:
        return row.generation.beams.num_candidates
    return row.generation.params.num_logprobs


def collect_row_rules(rows: Seq[Row]) -> dict[int, RowRules]:
    """By the place of their row, where processors say anything at all."""
    return {
        place: collect_rules(row.generation.params.processors, row.past)
        for place, row in enumerate(rows)
        if row.generation.params.processors and row.forced_id == NO_TOKEN
    }


def build_bias(rules: Mapping[int, RowRules]) -> SparseBias | None:
    biased = {place: each for place, each in rules.items() if each.ids}
    if not biased:
        return None
    ids = [token_id for each in biased.values() for token_id in each.ids]
    biases = [bias for each in biased.values() for bias in each.biases]
    rows = np.repeat(list(biased), [len(each.ids) for each in biased.values()])
    return SparseBias(rows, np.array(ids, np.int64), np.array(biases, np.float32))


def build_only(rules: Mapping[int, RowRules]) -> OnlyTokens | None:
    found = [(place, token_id) for place, each in rules.items() for token_id in each.only]
    return OnlyTokens(*np.array(found, np.int64).T) if found else None


def build_ranges(rules: Mapping[int, RowRules], vocab_size: int) -> TokenRanges | None:
    found = [(place, *banned) for place, each in rules.items() for banned in each.banned_ranges]
    if not found:
        return None
    rows, firsts, ends = np.array(found, np.int64).T
    return TokenRanges(rows, firsts, ends.clip(max=vocab_size))


def build_timestamps(rules: Mapping[int, RowRules]) -> TimestampRule | None:
    found = [(place, each.timestamp_begin) for place, each in rules.items() if each.timestamp_begin]
    return TimestampRule(*np.array(found, np.int64).T) if found else None


class NewTokens(NamedTuple):
    """What a counter is to count. `begins`: from nothing."""

    counter: int
    begins: bool
    ids: IntArray
    is_generated: BoolArray


def build_counted(rows: Seq[Row], counters: Counters) -> Counted | None:
    """Rows that have penalties and a counter, and the tokens of their sequences that are not counted yet."""
    countable = [(place, row) for place, row in enumerate(rows) if row.is_countable]
    owners = list({id(row.sequence): row for _, row in countable}.values())
    counters.claim([row.sequence for row in owners])
    claimed = {place: row.sequence.counter.index for place, row in countable if row.sequence.counter is not None}
    if not claimed:
        return None
    news = [count_new(row, row.sequence.counter) for row in owners if row.sequence.counter is not None]
    return Counted(
        rows=np.array(list(claimed), np.int64),
        counters=np.array(list(claimed.values()), np.int64),
        cleared=np.array([new.counter for new in news if new.begins], np.int64),
        added_counters=np.repeat(np.array([new.counter for new in news]), [len(new.ids) for new in news]),
        added_ids=np.concatenate([new.ids for new in news]),
        is_generated=np.concatenate([new.is_generated for new in news]),
    )


def count_new(row: Row, counter: Counter) -> NewTokens:
    """Tokens of its sequence, those of the prompt once each, which now count as counted."""
    first, token_ids = counter.num_counted, np.array(row.sequence.token_ids[counter.num_counted :], np.int64)
    counter.num_counted = len(row.sequence.token_ids)
    num_prompt_tokens = max(row.generation.num_prompt_tokens - first, 0)
    prompt, generated = np.unique(token_ids[:num_prompt_tokens]), token_ids[num_prompt_tokens:]
    ids = np.concatenate([prompt, generated])
    return NewTokens(counter.index, not first, ids, np.arange(len(ids)) >= len(prompt))


def build_history(rows: Seq[Row], counted: Collection[int] = ()) -> History | None:
    """The tokens before those rows that have penalties, but for those that are counted."""
    places = [place for place, row in enumerate(rows) if row.has_penalties and place not in counted]
    if not places:
        return None
    ids, is_generated = [], []
    for place in places:
        row = rows[place]
        tokens = np.concatenate([np.array(row.sequence.token_ids), np.array(row.drafts, np.int64)])
        ids.append(tokens)
        is_generated.append(np.arange(len(tokens)) >= row.generation.num_prompt_tokens)
    lengths = [len(tokens) for tokens in ids]
    return History(np.repeat(places, lengths), np.concatenate(ids), np.concatenate(is_generated))


def build_masks(rows: Seq[Row], vocab_size: int) -> TokenMasks | None:
    masked = [place for place, row in enumerate(rows) if row.sequence.matcher is not None and row.forced_id == NO_TOKEN]
    if not masked:
        return None
    bits = np.zeros((len(masked), -(-vocab_size // 32)), np.uint32)
    for mask, place in zip(bits, masked, strict=True):
        matcher = rows[place].sequence.matcher
        assert matcher is not None
        allowed = matcher.compute_mask()
        mask[: len(allowed)] = allowed[: len(mask)]
    return TokenMasks(np.array(masked, np.int64), bits)
