"""Where an engine counts the tokens of sequences that have penalties, so that a step says only which are new. Pure.

An engine may have counters (`EngineInfo.num_counters`). Nobody gives one back: who has none takes the one that has been
unused for longest, and begins anew in it. So does a sequence whose counter was taken meanwhile, or whose step has
failed: nobody knows then what was counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, eq=False)
class Counter:
    """Mutable: the last step that it was part of, and how many tokens of its sequence it holds; 0: it is to be cleared
    first."""

    index: int
    step: int
    num_counted: int = 0


class Countable(Protocol):
    """A sequence. None: its tokens are counted nowhere."""

    counter: Counter | None


class Counters:
    """Mutable: whose the counters are, and the number of the step."""

    def __init__(self, num_counters: int) -> None:
        self.owners: list[Counter | None] = [None] * num_counters
        self.step = 0

    def claim(self, sequences: Sequence[Countable]) -> None:
        """A counter for each, for a step that all of them are part of; None for the last ones where there are too
        few."""
        self.step += 1
        homeless = []
        for sequence in sequences:
            counter = sequence.counter
            if counter is not None and self.owners[counter.index] is counter:
                counter.step = self.step
            else:
                sequence.counter = None
                homeless.append(sequence)
        for sequence, index in zip(homeless, self.list_unused() if homeless else (), strict=False):
            sequence.counter = self.owners[index] = Counter(index, self.step)

    def list_unused(self) -> list[int]:
        """Counters that nobody of this step has, the longest unused first."""
        last = [0 if owner is None else owner.step for owner in self.owners]
        return sorted((index for index, step in enumerate(last) if step < self.step), key=last.__getitem__)
