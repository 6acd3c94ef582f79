"""Beam search over one prompt: which continuations live on, and which have ended. Pure.

The rules are those of transformers' `generate(num_beams=...)`, so that the answers are too: of each step's best
candidates those that end go among the finished answers if they are in the first `width`, ranked by their sum of
logprobs over length ** length_penalty; the others go on, and the search ends once none of them can be expected to do
better than the worst finished one.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


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
    """A finished answer: its tokens, the last one a stop token unless it was cut, and their logprobs."""

    score: np.float32
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(slots=True)
class BeamSearch:
    """Mutable: the live beams' scores and answers so far, the finished answers (best first), and whether it is over."""

    width: int
    length_penalty: float
    early_stopping: bool
    stop_token_ids: frozenset[int]
    max_tokens: int
    scores: list[np.float32] = field(default_factory=lambda: [np.float32(0)])
    answers: list[tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=lambda: [((), ())])
    finished: list[Hypothesis] = field(default_factory=list)
    is_over: bool = False

    @property
    def num_candidates(self) -> int:
        """How many of its most probable next tokens each beam offers: enough even if all stop tokens are among them."""
        return max(2, 1 + len(self.stop_token_ids)) * self.width

    def advance(self, top_ids: npt.NDArray[np.int64], top_logprobs: Scores) -> list[Continuation]:
        """[num_beams, num_candidates] of the live beams, in their order -> the beams that go on; none if it is over."""
        candidates = self.rank(top_ids, top_logprobs)
        num_tokens = len(self.answers[0][0]) + 1
        is_last = num_tokens >= self.max_tokens
        ends = [is_last or candidate.token_id in self.stop_token_ids for candidate in candidates]
        for candidate, has_ended in zip(candidates[: self.width], ends, strict=False):
            if has_ended:
                self.finish(candidate, num_tokens)
        going_on = [candidate for candidate, has_ended in zip(candidates, ends, strict=True) if not has_ended]
        going_on = going_on[: self.width]
        is_full = len(self.finished) >= self.width
        self.is_over = not going_on or (is_full and (self.early_stopping or self.cannot_improve(going_on, num_tokens)))
        if not self.is_over:
            self.answers = [self.extend(candidate) for candidate in going_on]
            self.scores = [candidate.score for candidate in going_on]
        return [] if self.is_over else going_on

    def rank(self, top_ids: npt.NDArray[np.int64], top_logprobs: Scores) -> list[Continuation]:
        """The best over all beams. Of equal ones the earlier beam's and the smaller token first."""
        totals = top_logprobs.astype(np.float32) + np.array(self.scores, np.float32)[:, None]
        parents = np.repeat(np.arange(len(totals)), totals.shape[1])
        usable = np.flatnonzero(np.isfinite(totals.ravel()))
        order = np.lexsort((top_ids.ravel()[usable], parents[usable], -totals.ravel()[usable]))
        return [
            Continuation(int(parents[i]), int(top_ids.ravel()[i]), float(top_logprobs.ravel()[i]), totals.ravel()[i])
            for i in usable[order[: self.num_candidates]]
        ]

    def finish(self, candidate: Continuation, num_tokens: int) -> None:
        token_ids, logprobs = self.extend(candidate)
        score = candidate.score / np.float32(num_tokens**self.length_penalty)
        self.finished.append(Hypothesis(score, token_ids, logprobs))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.width :]

    def extend(self, candidate: Continuation) -> tuple[tuple[int, ...], tuple[float, ...]]:
        token_ids, logprobs = self.answers[candidate.parent]
        return (*token_ids, candidate.token_id), (*logprobs, candidate.logprob)

    def cut(self) -> None:
        """End it here: what the live beams have so far are answers too."""
        for score, (token_ids, logprobs) in zip(self.scores, self.answers, strict=True):
            if token_ids:
                self.finished.append(
                    Hypothesis(score / np.float32(len(token_ids) ** self.length_penalty), token_ids, logprobs)
                )
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.width :]
        self.is_over = True

    def cannot_improve(self, going_on: list[Continuation], num_tokens: int) -> bool:
        """By the heuristic of `early_stopping=False`: the best live beam, as if it ended here."""
        best = going_on[0].score / np.float32(num_tokens**self.length_penalty)
        return bool(best <= self.finished[-1].score)
