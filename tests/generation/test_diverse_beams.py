"""Diverse beam search: the published algorithm, written plainly over whole rows of a tiny model's logprobs."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch

from server.engine.batchers.beam_search import BeamSearch
from server.engine.batchers.diverse_beams import DiverseBeamSearch
from server.wire.generation import EarlyStopping
from tests.generation.test_beam_parity import (
    FREQUENT,
    MAX_TOKENS,
    PROMPTS,
    STOPS,
    WIDTH,
    Answers,
    build_model,
    check_same,
    search,
)

Candidate = tuple[float, tuple[int, ...]]
"""A score, and an answer so far."""


@dataclass
class PlainGroup:
    """Mutable: its live beams, and the best of those that have ended."""

    stops: tuple[int, ...]
    length_penalty: float
    width: int
    beams: list[Candidate] = field(default_factory=lambda: [(0.0, ())])
    finished: list[Candidate] = field(default_factory=list)
    is_over: bool = False

    def rate(self, candidate: Candidate) -> float:
        return float(candidate[0] / len(candidate[1]) ** self.length_penalty)

    def advance(self, prompt: list[int], before: Counter[int], penalty: float) -> list[int]:
        """The tokens that it goes on or ends with; `before`: those of the groups before it."""
        candidates: list[Candidate] = []
        rows = find_logprobs([[*prompt, *token_ids] for _, token_ids in self.beams])
        for (score, token_ids), logprobs in zip(self.beams, rows, strict=True):
            for token_id, count in before.items():
                logprobs[token_id] -= penalty * count
            candidates += [(score + logprob, (*token_ids, token)) for token, logprob in enumerate(logprobs.tolist())]
        candidates.sort(key=lambda each: -each[0])
        length = len(candidates[0][1])
        is_last = length == MAX_TOKENS
        ended = [each for each in candidates[: self.width] if is_last or each[1][-1] in self.stops]
        self.finished = sorted([*self.finished, *ended], key=lambda each: -self.rate(each))[: self.width]
        self.beams = [each for each in candidates if each[1][-1] not in self.stops][: self.width]
        is_full = len(self.finished) == self.width
        self.is_over = is_last or (is_full and self.rate(self.beams[0]) <= self.rate(self.finished[-1]))
        chosen = [token_ids[-1] for _, token_ids in self.finished if len(token_ids) == length]
        return chosen if self.is_over else chosen + [token_ids[-1] for _, token_ids in self.beams]


@torch.inference_mode()
def find_logprobs(sequences: list[list[int]]) -> npt.NDArray[np.float64]:
    """Of what follows each, which are equally long: [num_sequences, vocab_size]."""
    logits = build_model()(torch.tensor(sequences)).logits[:, -1]
    return logits.log_softmax(-1).double().numpy()


def search_plainly(
    prompt: list[int], num_groups: int, penalty: float, stops: tuple[int, ...], length_penalty: float
) -> Answers:
    groups = [PlainGroup(stops, length_penalty, WIDTH // num_groups) for _ in range(num_groups)]
    while not all(group.is_over for group in groups):
        before: Counter[int] = Counter()
        for group in groups:
            if not group.is_over:
                before.update(group.advance(prompt, before, penalty))
    finished = [(token_ids, group.rate((score, token_ids))) for group in groups for score, token_ids in group.finished]
    return sorted(finished, key=lambda each: -each[1])


@pytest.mark.parametrize(
    ("num_groups", "penalty", "stops", "length_penalty"), [(2, 0.7, STOPS, 1.0), (4, 5.0, FREQUENT, 0.5)]
)
def test_answers_are_those_of_the_algorithm(
    num_groups: int, penalty: float, stops: tuple[int, ...], length_penalty: float
) -> None:
    """Of searches whose groups end at different times, all under way at once."""
    options = {"beam_groups": num_groups, "diversity_penalty": penalty, "length_penalty": length_penalty}
    prompts = PROMPTS[:4]
    found = search(prompts, stops, **options)
    check_same(found, [search_plainly(prompt, num_groups, penalty, stops, length_penalty) for prompt in prompts])
    check_same(search(prompts[:1], stops, **options), found[:1])


def test_answers_differ_more() -> None:
    """Each of them begins with another token."""
    diverse, alike = search(PROMPTS, beam_groups=WIDTH, diversity_penalty=5.0), search(PROMPTS)
    num_beginnings = [sum(len({token_ids[0] for token_ids, _ in each}) for each in found) for found in (diverse, alike)]
    assert num_beginnings[0] == WIDTH * len(PROMPTS) > 2 * num_beginnings[1]


def make(early_stopping: EarlyStopping = False, coverage_penalty: float = 0.0) -> DiverseBeamSearch:
    groups = [BeamSearch(1, 0.0, early_stopping, frozenset({9}), 10, coverage_penalty) for _ in range(2)]
    return DiverseBeamSearch(groups, 1.0)


def test_a_group_loses_what_those_before_it_take() -> None:
    """Its logprobs are told as they are."""
    beams = make()
    going_on = beams.advance(np.array([[1, 2, 3]]), np.array([[-0.1, -0.6, -4.0]], np.float32))
    assert [(each.parent, each.token_id, each.logprob) for each in going_on] == [
        (0, 1, pytest.approx(-0.1)),
        (0, 2, pytest.approx(-0.6)),
    ]
    ids, logprobs = np.array([[5, 6, 9], [5, 9, 6]]), np.array([[-0.1, -3.0, -9.0], [-0.5, -1.6, -9.0]], np.float32)
    going_on = beams.advance(ids, logprobs)
    assert [(each.parent, each.token_id) for each in going_on] == [(0, 5), (1, 5)]
    assert [float(each.score) for each in going_on] == pytest.approx([-0.2, -0.6 - 0.5 - 1.0])
    assert not beams.finished


def test_groups_end_each_for_itself() -> None:
    """Of the one that is over there are no rows any more."""
    beams = make(early_stopping=True)
    beams.advance(np.array([[1, 2, 3]]), np.array([[-0.1, -0.6, -4.0]], np.float32))
    ids = np.array([[9, 6, 7], [5, 6, 7]])
    going_on = beams.advance(ids, np.array([[-0.1, -3.0, -9.0], [-0.5, -3.0, -9.0]], np.float32))
    assert [(each.parent, each.token_id) for each in going_on] == [(1, 5)] and not beams.is_over
    assert beams.advance(np.array([[9, 6, 7]]), np.array([[-0.1, -3.0, -9.0]], np.float32)) == []
    assert beams.is_over and [each.token_ids for each in beams.finished] == [(1, 9), (2, 5, 9)]


def test_cut_gives_out_what_every_group_has() -> None:
    beams = make()
    beams.advance(np.array([[1, 2, 3]]), np.array([[-0.1, -0.6, -4.0]], np.float32))
    beams.cut()
    assert beams.is_over and [each.token_ids for each in beams.finished] == [(1,), (2,)]


def test_each_group_has_the_coverage_of_its_beams() -> None:
    beams = make(coverage_penalty=1.0)
    ids, logprobs = np.array([[1, 2, 3]]), np.array([[-0.1, -0.6, -4.0]], np.float32)
    beams.advance(ids, logprobs, np.array([[0.5, 0.5]], np.float32))
    ids, logprobs = np.array([[5, 6, 7], [8, 6, 7]]), np.array([[-0.1, -3.0, -9.0]] * 2, np.float32)
    beams.advance(ids, logprobs, np.array([[0.5, 0.0], [0.0, 0.25]], np.float32))
    assert [group.coverage.tolist() for group in beams.groups] == [[[1.0, 0.5]], [[0.5, 0.75]]]
