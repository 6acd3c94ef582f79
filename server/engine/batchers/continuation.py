"""Steps that go on by themselves: several tokens of each sequence, with Python's work around a step done once for all.

Where everybody who holds blocks wants their next token and nothing that Python has to say anew for each (a grammar,
penalties, beams), what follows on a step is known as soon as its tokens are: the device goes on at once. Who ends
leaves the run, so that nothing is computed in vain, and a newcomer ends it. Answers are the same as step by step
(multi-step scheduling, as in vLLM 0.6).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from runtime.batch import NO_TOKEN, Batch, IntArray, Sampling, Sources
from runtime.kv_cache.newest import pack_newest
from server.engine.batchers.batcher import Run
from server.engine.batchers.part import Part
from server.engine.batchers.running_set import RunningSet
from server.engine.batchers.sampling_rows import Row
from server.engine.batchers.uniforms import draw_uniforms

MAX_FOLLOWING = 7
MAX_RUN_S = 0.03
"""A step and what follows on it: tokens come together that were computed so far apart."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """`num_following`: the most batches. By sequence of the step: `num_wanted`, tokens behind that of the step;
    `stop_ids`, those that end it; `seeds`, `indices`, `num_generated`: of the step's uniforms. `is_awaited`: whether
    somebody may get in once a sequence ends."""

    num_following: int
    num_wanted: list[int]
    stop_ids: list[tuple[int, ...]]
    seeds: list[int]
    indices: list[int]
    num_generated: list[int]
    is_awaited: bool

    def follow(self, runs: Sequence[Run]) -> tuple[list[int], Batch] | None:
        """What is computed behind these runs, of which the first is the step itself; None: no more."""
        last, number = runs[-1], len(runs)
        assert last.output.tokens is not None and last.batch.paging is not None, "Decoders give tokens. This is a bug."
        if number > self.num_following:
            return None
        token_ids = last.output.tokens.token_ids
        kept = [
            row
            for row, (place, token_id) in enumerate(zip(last.places, token_ids.tolist(), strict=True))
            if number <= self.num_wanted[place] and token_id not in self.stop_ids[place] and token_id != NO_TOKEN
        ]
        if not kept or (self.is_awaited and len(kept) < len(token_ids)):
            return None
        places, rows = [last.places[row] for row in kept], np.array(kept)
        paging = last.batch.paging
        sampling = self.draw_anew(take_rows(paging.sampling, rows), places, number)
        sources = None if paging.sources is None else take_sources(paging.sources, rows)
        positions = last.batch.arrays["position_ids"][rows] + 1
        return places, pack_newest(token_ids[rows], positions, paging.block_table[rows], sampling, sources)

    def draw_anew(self, sampling: Sampling, places: list[int], number: int) -> Sampling:
        if not sampling.temperature.any():
            return sampling
        seeds, indices = [self.seeds[place] for place in places], [self.indices[place] for place in places]
        num_generated = [self.num_generated[place] + number for place in places]
        return replace(sampling, uniforms=draw_uniforms(seeds, indices, num_generated))


def take_rows(sampling: Sampling, rows: IntArray) -> Sampling:
    """Of a sampling that is the same for each token."""
    if len(rows) == len(sampling.temperature):
        return sampling
    arrays = {each.name: getattr(sampling, each.name) for each in fields(Sampling)}
    return replace(sampling, **{name: array[rows] for name, array in arrays.items() if array is not None})


def take_sources(sources: Sources, rows: IntArray) -> Sources:
    """In the cache by now."""
    return Sources(sources.source_table[rows], sources.source_seqlens[rows])


def plan_continuation(
    parts: list[Part], rows: list[Row], running: RunningSet, predicted_s: float, *, is_awaited: bool
) -> Continuation | None:
    """How a step of these parts may go on, with blocks reserved for it; None where it may not. `predicted_s`: what it
    takes; 0 where nobody knows."""
    num_running = sum(len(generation.live) for generation in running.generations)
    if predicted_s <= 0 or num_running != len(parts) or not all(is_next_token(part) for part in parts):
        return None
    wanted = [count_wanted(part) for part in parts]
    num_following = min(MAX_FOLLOWING, int(MAX_RUN_S / predicted_s) - 1, max(wanted))
    ahead = [(part.sequence, min(num_following, more)) for part, more in zip(parts, wanted, strict=True)]
    if num_following < 1 or not running.reserve_ahead(ahead):
        return None
    return Continuation(
        num_following,
        wanted,
        [part.generation.params.stop_token_ids for part in parts],
        [part.generation.seed for part in parts],
        [row.index for row in rows],
        [row.num_generated for row in rows],
        is_awaited,
    )


def is_next_token(part: Part) -> bool:
    """Of an answer, without anything that has to be said anew for each."""
    generation = part.generation
    return part.num_tokens == 1 and generation.has_forked and not generation.branches and generation.is_plain


def count_wanted(part: Part) -> int:
    """Tokens behind the next."""
    return part.generation.max_new_tokens - part.generation.count_generated(part.sequence) - 1
