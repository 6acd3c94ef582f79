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
"""Of a step and what follows on it, as predicted and as it turns out: their tokens come together."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """`num_following`: the most batches. By sequence of the step: `room`, tokens that are wanted behind the step's;
    `stop_ids`, those that end it; `seeds`, `indices`, `positions`: what its random numbers come of. `is_awaited`:
    whether somebody may get in once a sequence ends."""

    num_following: int
    room: list[int]
    stop_ids: list[tuple[int, ...]]
    seeds: list[int]
    indices: list[int]
    positions: list[int]
    is_awaited: bool

    def follow(self, runs: Sequence[Run], elapsed_s: float) -> tuple[Sequence[int], Batch] | None:
        """What is computed behind these runs, of which the first is the step itself; None: no more."""
        last, number = runs[-1], len(runs)
        assert last.output.tokens is not None and last.batch.paging is not None, "Decoders give tokens. This is a bug."
        if number > self.num_following or elapsed_s * (number + 1) / number > MAX_RUN_S:
            return None
        token_ids = last.output.tokens.token_ids
        kept = [
            row
            for row, (place, token_id) in enumerate(zip(last.places, token_ids.tolist(), strict=True))
            if number <= self.room[place] and token_id not in self.stop_ids[place] and token_id != NO_TOKEN
        ]
        if not kept or (self.is_awaited and len(kept) < len(token_ids)):
            return None
        places, rows = [last.places[row] for row in kept], np.array(kept)
        paging = last.batch.paging
        sampling = self.draw_anew(keep_rows(paging.sampling, rows), places, number)
        sources = None if paging.sources is None else keep_sources(paging.sources, rows)
        positions = last.batch.arrays["position_ids"][rows] + 1
        return places, pack_newest(token_ids[rows], positions, paging.block_table[rows], sampling, sources)

    def draw_anew(self, sampling: Sampling, places: list[int], number: int) -> Sampling:
        if not sampling.temperature.any():
            return sampling
        seeds, indices = [self.seeds[place] for place in places], [self.indices[place] for place in places]
        positions = [self.positions[place] + number for place in places]
        return replace(sampling, uniforms=draw_uniforms(seeds, indices, positions))


def keep_rows(sampling: Sampling, rows: IntArray) -> Sampling:
    """Of a sampling that is the same for each token."""
    if len(rows) == len(sampling.temperature):
        return sampling
    arrays = {each.name: getattr(sampling, each.name) for each in fields(Sampling)}
    return replace(sampling, **{name: array[rows] for name, array in arrays.items() if array is not None})


def keep_sources(sources: Sources, rows: IntArray) -> Sources:
    """In the cache by now."""
    return Sources(sources.source_table[rows], sources.source_seqlens[rows])


def plan_continuation(
    parts: list[Part], rows: list[Row], running: RunningSet, predicted_s: float, *, is_awaited: bool
) -> Continuation | None:
    """How a step of these parts, without drafts, may go on, with blocks reserved for it; None where it may not.
    `predicted_s`: what it takes; 0 where nobody knows."""
    num_running = sum(len(generation.live) for generation in running.generations)
    can_go_on = all(generation.is_decoding and generation.is_plain for generation in running.generations)
    if predicted_s <= 0 or num_running != len(parts) or not can_go_on:
        return None
    room = [part.generation.count_room(part.sequence) for part in parts]
    num_following = min(MAX_FOLLOWING, int(MAX_RUN_S / predicted_s) - 1, max(room))
    ahead = [(part.sequence, min(num_following, more)) for part, more in zip(parts, room, strict=True)]
    if num_following < 1 or not running.reserve_ahead(ahead):
        return None
    return Continuation(
        num_following,
        room,
        [part.generation.params.stop_token_ids for part in parts],
        [part.generation.seed for part in parts],
        [row.index for row in rows],
        [row.num_generated for row in rows],
        is_awaited,
    )
