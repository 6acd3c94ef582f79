"""Tokens that are counted: whoever joins and leaves, counters hold what stands before the rows that name them."""

from collections import Counter as Bag
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import Counted
from server.engine.batchers.counters import Counters
from server.engine.batchers.sampling_rows import build_sampling, list_rows
from server.engine.batchers.sequences import Generation
from server.wire.generation import GenerationParams
from tests.generation.test_sampling_rows import VOCAB_SIZE, make_generation, make_part

PENALISED = GenerationParams(99, frequency_penalty=0.5)
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=4)


@dataclass
class Counts:
    """An engine's, plainly. Mutable: by counter the tokens of prompts, and how often each was generated."""

    prompts: dict[int, set[int]] = field(default_factory=dict)
    generated: dict[int, Bag[int]] = field(default_factory=dict)

    def count(self, counted: Counted) -> None:
        for counter in counted.cleared.tolist():
            self.prompts[counter], self.generated[counter] = set(), Bag()
        added = (counted.added_counters, counted.added_ids, counted.is_generated)
        for counter, token_id, is_generated in zip(*(each.tolist() for each in added), strict=True):
            if is_generated:
                self.generated[counter][token_id] += 1
            else:
                assert token_id not in self.prompts[counter], "The prompt's tokens are counted once."
                self.prompts[counter].add(token_id)


def check_step(engine: Counts, counters: Counters, generations: Seq[Generation], drafts: Seq[tuple[int, ...]]) -> int:
    """Form a step, and look at what stands before each of its rows. How many rows are counted."""
    parts = [make_part(each, guess) for each, guess in zip(generations, drafts, strict=True)]
    rows = list_rows(parts)
    sampling = build_sampling(rows, VOCAB_SIZE, counters)
    history = {} if sampling.history is None else set(sampling.history.rows.tolist())
    counted = sampling.counted
    claimed = {} if counted is None else dict(zip(counted.rows.tolist(), counted.counters.tolist(), strict=True))
    if counted is not None:
        engine.count(counted)
    for place, row in enumerate(rows):
        assert (place in history) + (place in claimed) == row.has_penalties
        if place in claimed:
            ids, num_prompt = row.sequence.token_ids.tolist(), row.generation.num_prompt_tokens
            assert not row.drafts
            assert engine.prompts[claimed[place]] == set(ids[:num_prompt])
            assert +engine.generated[claimed[place]] == Bag(ids[num_prompt:])
    return len(claimed)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3))
def test_counters_hold_what_stands_before_their_rows(data: st.DataObject, num_counters: int) -> None:
    engine, counters = Counts(), Counters(num_counters)
    live: list[Generation] = []
    for _ in range(data.draw(st.integers(2, 8), "steps")):
        if data.draw(st.booleans(), "joins") or not live:
            params = data.draw(st.sampled_from([PENALISED, PENALISED, GenerationParams(99)]))
            live.append(make_generation(data.draw(TOKENS), params, data.draw(TOKENS)))
        step = [each for each in live if data.draw(st.booleans(), "is in the step")] or live[:1]
        drafts = [data.draw(st.sampled_from([(), (), (3, 4)])) for _ in step]
        check_step(engine, counters, step, drafts)
        for each in step:
            what = data.draw(st.sampled_from(["goes on", "goes on", "goes on", "fails", "leaves"]))
            each.live[0].token_ids.extend(data.draw(TOKENS) if what == "goes on" else [])
            if what == "fails":
                each.live[0].counter = None
            if what == "leaves":
                live.remove(each)


def test_a_step_says_only_what_is_new() -> None:
    counters, engine = Counters(2), Counts()
    first = make_generation([1, 2, 2], PENALISED, [5])
    check_step(engine, counters, [first], [()])
    first.live[0].token_ids.append(7)
    counted = build_sampling(list_rows([make_part(first)]), VOCAB_SIZE, counters).counted
    assert counted is not None and not len(counted.cleared)
    assert (counted.added_ids.tolist(), counted.is_generated.tolist()) == ([7], [True])


def test_slots_of_those_who_left_are_taken_first() -> None:
    """And where there are too few the last ones are told by their history."""
    counters, engine = Counters(2), Counts()
    stays, leaves, new = (make_generation([token_id], PENALISED, [4]) for token_id in (1, 2, 3))
    assert check_step(engine, counters, [leaves, stays], [(), ()]) == 2
    assert check_step(engine, counters, [stays, new], [(), ()]) == 2
    assert stays.live[0].counter is not None and new.live[0].counter is not None
    assert check_step(engine, counters, [stays, new, leaves], [(), (), ()]) == 2
    assert leaves.live[0].counter is None


@pytest.mark.parametrize("beam_width", [0, 2])
def test_beams_are_told_by_their_history(beam_width: int) -> None:
    params = GenerationParams(9, repetition_penalty=2.0, beam_width=beam_width, stop_token_ids=(1,))
    rows = list_rows([make_part(make_generation([3], params, [4]))])
    sampling = build_sampling(rows, VOCAB_SIZE, Counters(2))
    assert (sampling.history is None, sampling.counted is None) == ((False, True) if beam_width else (True, False))


def test_answers_of_one_prompt_begin_from_one_slot() -> None:
    generation = make_generation([3, 4, 3], GenerationParams(9, presence_penalty=1.0, num_sequences=3))
    sampling = build_sampling(list_rows([make_part(generation, past=0)]), VOCAB_SIZE, Counters(5))
    assert sampling.counted is not None
    assert len(set(sampling.counted.counters)) == 1 and sampling.counted.rows.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(sampling.counted.added_ids, [3, 4])
