"""Beams in groups that keep out of each other's way, so that the best answers differ (diverse beam search: Vijayakumar
et al., 2016, with the Hamming diversity of its algorithm 1). Pure.

In each step group after group chooses, and a candidate's score loses `diversity_penalty` for each beam of the groups
before that has just chosen the same token, to go on with or to end with. Otherwise a group is a beam search of its own.
"""

from dataclasses import dataclass, replace

import numpy as np

from server.engine.batchers.beam_search import BeamSearch, Continuation, Hypothesis, Scores, TokenIds


@dataclass(slots=True)
class DiverseBeamSearch:
    """As BeamSearch. Mutable: the groups, and whether each has beams of its own yet.

    The live beams of all groups lie one behind the other; of a group that is over there are none.
    """

    groups: list[BeamSearch]
    diversity_penalty: float
    has_begun: bool = False

    @property
    def width(self) -> int:
        return sum(group.width for group in self.groups)

    @property
    def num_candidates(self) -> int:
        """Enough for one group even if all tokens of the others, and every stop token, are among them."""
        return self.width + len(self.groups[0].stop_token_ids)

    @property
    def is_over(self) -> bool:
        return all(group.is_over for group in self.groups)

    @property
    def finished(self) -> list[Hypothesis]:
        """Of all groups, the best first."""
        found = [hypothesis for group in self.groups for hypothesis in group.finished]
        return sorted(found, key=lambda each: -each.score)

    def advance(self, top_ids: TokenIds, top_logprobs: Scores, weights: Scores | None = None) -> list[Continuation]:
        """See BeamSearch. All groups begin with the same beam."""
        going_on: list[Continuation] = []
        chosen: list[int] = []
        first = 0
        for group in self.groups:
            if group.is_over:
                continue
            rows = slice(first, first + len(group.scores))
            is_chosen = top_ids[rows, :, None] == np.array(chosen, np.int64)
            penalties = self.diversity_penalty * is_chosen.sum(-1, dtype=np.float32)
            num_tokens = len(group.answers[0][0]) + 1
            own_weights = None if weights is None else weights[rows]
            found = group.advance(top_ids[rows], top_logprobs[rows], own_weights, penalties)
            going_on += [replace(each, parent=first + each.parent) for each in found]
            chosen += [each.token_id for each in found]
            chosen += [each.token_ids[-1] for each in group.finished if len(each.token_ids) == num_tokens]
            first = rows.stop if self.has_begun else 0
        self.has_begun = True
        return going_on

    def cut(self) -> None:
        """See BeamSearch."""
        for group in self.groups:
            if not group.is_over:
                group.cut()
