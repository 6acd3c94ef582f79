"""Rows of logits: whose they are, and what of their requests decides on them."""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import pytest

from runtime.batch import NO_TOKEN
from server.engine.batchers.part import Part
from server.engine.batchers.sampling_rows import (
    build_history,
    build_masks,
    build_sampling,
    collect_row_rules,
    list_rows,
)
from server.engine.batchers.sequences import Generation
from server.wire.generation import GenerationParams
from server.wire.processors import SuppressedTokens

VOCAB_SIZE = 12


def make_generation(prompt: Seq[int], params: GenerationParams, answer: Seq[int] = ()) -> Generation:
    generation = Generation(list(prompt), params, (0, 0.0, 0, 0), 1e9, seed=params.seed or 0)
    generation.live[0].token_ids.extend(answer)
    generation.has_forked = bool(answer)
    return generation


def make_part(generation: Generation, drafts: tuple[int, ...] = (), past: int | None = None, rows: int = 0) -> Part:
    """Computes all that is known behind `past`; the newest token only if that is not given."""
    sequence = generation.live[0]
    past = len(sequence.token_ids) - 1 if past is None else past
    return Part(generation, sequence, past, len(sequence.token_ids) - past + len(drafts), drafts, rows)


def test_processors_do_not_look_at_tokens_of_a_prompt() -> None:
    params = GenerationParams(9, processors=(SuppressedTokens((7,)),), num_prompt_logprobs=0)
    prompt = make_generation([3, 4, 5], params)
    rows = list_rows([make_part(prompt, past=0, rows=2)])
    assert [(row.token_row, row.forced_id) for row in rows] == [(0, 4), (1, 5), (2, NO_TOKEN)]
    assert list(collect_row_rules(rows)) == [2]


@pytest.mark.parametrize(("past", "rows", "places"), [(0, 1, [(1, 9), (3, NO_TOKEN)]), (2, 0, [(1, NO_TOKEN)])])
def test_a_probe_stands_at_its_place(past: int, rows: int, places: list[tuple[int, int]]) -> None:
    """Nobody asks what follows the others; nor again, where it has been told."""
    generation = make_generation([3, 4, 5, 6], GenerationParams(9, probe=(1, 9)))
    found = list_rows([make_part(generation, past=past, rows=rows)])
    assert [(row.token_row, row.forced_id) for row in found] == places
    assert build_sampling(found, VOCAB_SIZE).num_top.tolist() == [0, -1][-len(places) :]


def test_rows_of_a_prompt_with_several_answers() -> None:
    generation = make_generation([3, 4, 5], GenerationParams(9, num_sequences=3, seed=4))
    rows = list_rows([make_part(generation, past=0)])
    assert [(row.token_row, row.index, row.num_generated) for row in rows] == [(2, 0, 0), (2, 1, 0), (2, 2, 0)]
    assert len(set(build_sampling(rows, VOCAB_SIZE).uniforms)) == 3


def test_one_row_for_each_answer_that_has_forked_and_for_each_beam() -> None:
    forked = make_generation([3, 4], GenerationParams(9, num_sequences=3), [5])
    beams = make_generation([3, 4], GenerationParams(9, num_sequences=3, beam_width=3))
    rows = list_rows([make_part(forked), make_part(beams, past=0)])
    assert [(row.token_row, row.index) for row in rows] == [(0, 0), (2, 0)]


def test_random_numbers_are_those_of_the_answer_and_its_length() -> None:
    params = GenerationParams(9, seed=4)
    drafts = list_rows([make_part(make_generation([3], params, [5]), (6, 7))])
    later = [list_rows([make_part(make_generation([3], params, answer))]) for answer in ([5], [5, 6], [5, 6, 7])]
    alone = [build_sampling(rows, VOCAB_SIZE).uniforms[0] for rows in later]
    assert build_sampling(drafts, VOCAB_SIZE).uniforms.tolist() == alone
    assert len(set(alone)) == 3


def test_numbers_of_each_row_are_its_requests() -> None:
    values = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.75,
        "frequency_penalty": -0.5,
    }
    parts = [make_part(make_generation([1], GenerationParams(9, **each), [2])) for each in ({}, values)]  # type: ignore[arg-type]
    sampling = build_sampling(list_rows(parts), VOCAB_SIZE)
    for name, value in values.items():
        assert getattr(sampling, name).tolist() == [getattr(GenerationParams(9), name), value], name


class Allowing:
    """A matcher that always allows the same tokens, 32 of them to a word."""

    def __init__(self, *words: int) -> None:
        self.words = np.array(words, np.uint32)

    def compute_mask(self) -> npt.NDArray[np.uint32]:
        return self.words

    def accept(self, token_id: int) -> None: ...

    def fork(self) -> "Allowing":
        return self


def test_masks_are_as_wide_as_the_vocabulary() -> None:
    """A tokenizer may know fewer tokens than the model has logits for, or more; a prompt's tokens are not masked."""
    free = make_part(make_generation([1], GenerationParams(9), [2]))
    short = make_generation([1, 2], GenerationParams(9, num_prompt_logprobs=0))
    long = make_generation([1], GenerationParams(9), [2])
    short.live[0].matcher, long.live[0].matcher = Allowing(5), Allowing(6, 7, 8)
    masks = build_masks(list_rows([free, make_part(short, past=0, rows=1), make_part(long)]), 40)
    assert masks is not None
    assert masks.rows.tolist() == [2, 3]
    assert masks.bits.tolist() == [[5, 0], [6, 7]]
    assert build_masks(list_rows([free]), 40) is None


def test_rows_stand_at_the_places_of_their_tokens() -> None:
    """A prompt of which a part is still to come gives none; drafts give one each."""
    half = make_generation([1, 2, 3, 4], GenerationParams(9))
    whole = make_generation([5, 6, 7], GenerationParams(9))
    guessed = make_generation([8], GenerationParams(9), [1, 2])
    only_looks = make_generation([9], GenerationParams(0))
    parts = [
        Part(half, half.live[0], 0, 2),
        make_part(whole, past=0),
        make_part(guessed, (3, 4)),
        make_part(only_looks),
    ]
    rows = list_rows(parts)
    assert [row.token_row for row in rows] == [4, 5, 6, 7]
    assert [row.drafts for row in rows] == [(), (), (3,), (3, 4)]
    assert [row.num_generated for row in rows] == [0, 2, 3, 4]


def test_history_tells_the_prompt_from_the_answer() -> None:
    plain = make_part(make_generation([1], GenerationParams(9), [2]))
    for penalty in ({"repetition_penalty": 0.5}, {"presence_penalty": -1.0}, {"frequency_penalty": 0.5}):
        part = make_part(make_generation([1, 2], GenerationParams(9, **penalty), [3]), (4,))  # type: ignore[arg-type]
        history = build_history(list_rows([plain, part]))
        assert history is not None
        assert history.rows.tolist() == [1, 1, 1, 2, 2, 2, 2]
        assert history.ids.tolist() == [1, 2, 3, 1, 2, 3, 4]
        assert history.is_generated.tolist() == [False, False, True, False, False, True, True]
    assert build_history(list_rows([plain])) is None


def test_what_is_forced_or_ranked_by_beams_is_not_drawn() -> None:
    params = GenerationParams(9, temperature=0.7, num_logprobs=2, num_prompt_logprobs=4, repetition_penalty=2.0)
    beams = GenerationParams(9, temperature=0.7, beam_width=3, stop_token_ids=(1, 2))
    parts = [make_part(make_generation([1, 2], params), past=0, rows=1), make_part(make_generation([3], beams, [4]))]
    sampling = build_sampling(list_rows(parts), VOCAB_SIZE)
    assert sampling.temperature.tolist() == np.float32([0, 0.7, 0]).tolist()
    assert sampling.is_ranked.tolist() == [False, False, True]
    assert sampling.num_top.tolist() == [4, 2, 5]
    assert sampling.forced_ids.tolist() == [2, NO_TOKEN, NO_TOKEN]
    assert sampling.history is not None and sampling.history.rows.tolist() == [1, 1]
