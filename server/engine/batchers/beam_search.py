"""Beam search over one prompt: which continuations live on, and which have ended. Pure.

The rules are those of transformers' `generate(num_beams=...)`, so that the answers are too: of each step's best
candidates those that end go among the finished answers if they are in the first `width`, ranked by their sum of
logprobs over length ** length_penalty; the others go on, and the search ends once none of them can be expected to do
better than the worst finished one. Logprobs are what logits processors leave of them (`Sampling.is_ranked`).

With a coverage penalty beta, a finished answer's score has beta * sum_i log(min(sum_j p_ij, 1)) added, p_ij being how
much its token j looks at token i of the source (GNMT: Wu et al., 2016, equation 14; as in CTranslate2 it does not
decide which beams go on).
"""

import bisect
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from server.wire.generation import EarlyStopping

Scores = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Continuation:
    """One more token on the beam number `parent`."""

    parent: int
    token_id: int
    logprob: float
    score: np.float32
    """Sum of logprobs so far."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished answer: its tokens, the last one a stop token unless it was cut, and their logprobs. `score`: their
    sum over length ** length_penalty."""

    score: np.float32
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(slots=True)
class BeamSearch:
    """Mutable: the live beams' scores and answers so far, the finished answers (best first), and whether it is over."""

    width: int
    length_penalty: float
    early_stopping: EarlyStopping
    stop_token_ids: frozenset[int]
    max_tokens: int
    coverage_penalty: float = 0.0
    scores: list[np.float32] = field(default_factory=lambda: [np.float32(0)])
    answers: list[tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=lambda: [((), ())])
    coverage: Scores = field(default_factory=lambda: np.zeros((1, 1), np.float32))
    """[num_beams, num_keys]: how much the live beams have looked at each token of the source so far."""
    finished: list[Hypothesis] = field(default_factory=list)
    is_over: bool = False

    @property
    def num_candidates(self) -> int:
        """How many of its most probable next tokens each beam offers: `width` of them go on even if every stop token
        is among them. transformers ranks (1 + number of stop tokens) * width of all beams together, of which no more
        than this of one beam can count."""
        return self.width + len(self.stop_token_ids)

    def advance(
        self, top_ids: TokenIds, top_logprobs: Scores, weights: Scores | None = None, penalties: Scores | None = None
    ) -> list[Continuation]:
        """[num_beams, num_candidates] of the live beams, in their order -> the beams that go on; none if it is over.
        `weights` [num_beams, num_keys]: how much each looks at the source now, where there is a coverage penalty.
        `penalties`, as many as candidates: what is taken from their scores.

        What is not finite is no candidate.
        """
        if weights is not None:
            self.coverage = self.coverage + weights
        num_tokens = len(self.answers[0][0]) + 1
        totals = top_logprobs.astype(np.float32) + np.array(self.scores, np.float32)[:, None]
        if penalties is not None:
            totals -= penalties
        ends = np.full(top_ids.shape, True) if num_tokens >= self.max_tokens else self.find_stops(top_ids)
        is_usable = np.isfinite(totals)
        for place in rank_best(totals, top_ids, is_usable, self.width):
            if ends.flat[place]:
                candidate = take_candidate(place, totals, top_ids, top_logprobs)
                self.finish(candidate.score, *self.extend(candidate), candidate.parent)
        places = rank_best(totals, top_ids, is_usable & ~ends, self.width)
        going_on = [take_candidate(place, totals, top_ids, top_logprobs) for place in places]
        is_full = len(self.finished) >= self.width
        self.is_over = not going_on or (is_full and self.is_good_enough(going_on[0], num_tokens))
        if not self.is_over:
            self.answers = [self.extend(candidate) for candidate in going_on]
            self.scores = [candidate.score for candidate in going_on]
            if self.coverage_penalty:
                self.coverage = self.coverage[[candidate.parent for candidate in going_on]]
        return [] if self.is_over else going_on

    def find_stops(self, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Compared with each: of few stops numpy's own search takes several times as long."""
        stops = np.array([*self.stop_token_ids], np.int64)
        found: npt.NDArray[np.bool_] = (token_ids[:, :, None] == stops).any(-1)
        return found

    def finish(self, score: np.float32, token_ids: tuple[int, ...], logprobs: tuple[float, ...], beam: int) -> None:
        """`score`: the sum of logprobs; `beam`: the live one whose coverage it has. Of equally good answers the earlier
        one stays before the later one."""
        final = self.divide_by_length(score, len(token_ids)) + self.rate_coverage(beam)
        hypothesis = Hypothesis(final, token_ids, logprobs)
        bisect.insort(self.finished, hypothesis, key=lambda each: -each.score)
        del self.finished[self.width :]

    def divide_by_length(self, score: np.float32, num_tokens: int) -> np.float32:
        return score / np.float32(num_tokens**self.length_penalty)

    def rate_coverage(self, beam: int) -> np.float32:
        """0 of what has looked at all of the source, else less. What nobody looks at counts as if by the least there
        is, so that scores stay finite."""
        if not self.coverage_penalty:
            return np.float32(0)
        looked_at = self.coverage[beam].clip(np.finfo(np.float32).tiny, 1)
        return np.float32(self.coverage_penalty * np.log(looked_at).sum())

    def extend(self, candidate: Continuation) -> tuple[tuple[int, ...], tuple[float, ...]]:
        token_ids, logprobs = self.answers[candidate.parent]
        return (*token_ids, candidate.token_id), (*logprobs, candidate.logprob)

    def cut(self) -> None:
        """End it here: what the live beams have so far are answers too."""
        for beam, (score, (token_ids, logprobs)) in enumerate(zip(self.scores, self.answers, strict=True)):
            if token_ids:
                self.finish(score, token_ids, logprobs, beam)
        self.is_over = True

    def is_good_enough(self, best: Continuation, num_tokens: int) -> bool:
        """Whether the finished answers are, and the best live beam is not waited for. It is judged as if it ended here;
        by "never" as if it grew to the length that does its score most good, covered all of its source, and had no
        logprob to pay for that."""
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never":
            best_length = self.max_tokens if self.length_penalty > 0 else num_tokens
            return bool(self.divide_by_length(best.score, best_length) <= self.finished[-1].score)
        score = self.divide_by_length(best.score, num_tokens) + self.rate_coverage(best.parent)
        return bool(score <= self.finished[-1].score)


def rank_best(totals: Scores, top_ids: TokenIds, is_usable: npt.NDArray[np.bool_], num_best: int) -> list[int]:
    """Flat places of the largest usable `totals` [num_beams, num_candidates], the best first, at most `num_best`. Of
    equal ones the earlier beam's and the smaller token first.

    Only what is as good as the last of them is sorted.
    """
    usable = np.flatnonzero(is_usable)
    if len(usable) > num_best:
        found = totals.flat[usable]
        usable = usable[found >= np.partition(found, -num_best)[-num_best]]
    beams = usable // totals.shape[1]
    order = np.lexsort((top_ids.flat[usable], beams, -totals.flat[usable]))
    places: list[int] = usable[order[:num_best]].tolist()
    return places


def take_candidate(place: int, totals: Scores, top_ids: TokenIds, top_logprobs: Scores) -> Continuation:
    parent = place // totals.shape[1]
    return Continuation(parent, int(top_ids.flat[place]), float(top_logprobs.flat[place]), totals.flat[place])
