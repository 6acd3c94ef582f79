"""Jobs waiting for a step, in the order they should run, each with as many inputs as it has. Pure.

Lowest priority number first; of equal ones the earliest deadline. A deadline further away than HORIZON_S counts as that
far: a patient job must not wait behind every impatient one that comes later.

A step is shared out fairly (max-min, Bertsekas and Gallager, 1987): in their order, each job first gets what fits its
part of the budget, which is the budget over the number of jobs that wait; what is left goes round, one input of each
job at a time. So a job no larger than its part is in the next step, whatever comes before it: a short text never waits
for the 2,048 others of somebody's call. Only where the first job's inputs are all larger than such a part may it be in
the step after that, because then the first one gets every second turn.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar

HORIZON_S = 30.0


class Item(Protocol):
    """One input of a job."""

    @property
    def num_tokens(self) -> int:
        """What it takes of a step's budget."""


AnyItem = TypeVar("AnyItem", bound=Item)
Place = tuple[int, float, int]


@dataclass(slots=True, eq=False)
class Waiting(Generic[AnyItem]):
    """A job in the queue. Mutable: its inputs that wait, by their number, in that order."""

    priority: int
    deadline_s: float
    arrival_s: float
    number: int
    items: dict[int, AnyItem] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        return (self.priority, min(self.deadline_s, self.arrival_s + HORIZON_S), self.number)


@dataclass(slots=True)
class JobQueue(Generic[AnyItem]):
    """Mutable. A job is in it as long as one of its inputs waits. `num_tokens`, `num_items`: of all of them."""

    order: list[Waiting[AnyItem]] = field(default_factory=list)
    num_tokens: int = 0
    num_items: int = 0
    count: int = 0
    owed: Waiting[AnyItem] | None = None
    """The first job, where nothing of it went into the last step."""

    def enter(self, *, priority: int, deadline_s: float, arrival_s: float) -> Waiting[AnyItem]:
        """A new job, not waiting for anything yet; its place among others never changes."""
        self.count += 1
        return Waiting(priority, deadline_s, arrival_s, self.count)

    def push(self, waiting: Waiting[AnyItem], index: int, item: AnyItem) -> None:
        """One more input of a job waits, or once more."""
        if not waiting.items:
            insort(self.order, waiting, key=lambda other: other.place)
        waiting.items[index] = item
        self.num_tokens += item.num_tokens
        self.num_items += 1

    def take(self, waiting: Waiting[AnyItem], index: int) -> AnyItem:
        """This input waits no longer."""
        item = waiting.items.pop(index)
        if waiting is self.owed:
            self.owed = None
        self.num_tokens -= item.num_tokens
        self.num_items -= 1
        if not waiting.items:
            del self.order[bisect_left(self.order, waiting.place, key=lambda other: other.place)]
        return item

    def drop(self, waiting: Waiting[AnyItem]) -> None:
        """None of its inputs waits any longer."""
        for index in list(waiting.items):
            self.take(waiting, index)

    def list_late(self, now_s: float) -> list[Waiting[AnyItem]]:
        """Jobs whose deadline has passed."""
        return [waiting for waiting in self.order if waiting.deadline_s <= now_s]

    def share_out(self, num_tokens: int, num_items: int) -> Iterator[tuple[Waiting[AnyItem], int, AnyItem]]:
        """Inputs in the order in which they should be put into a step with room for so many tokens and inputs. Whoever
        reads may take what it is given, and stop at any time."""
        if not self.order:
            return
        first = self.order[0]
        if first is self.owed:
            index = min(first.items)
            yield first, index, first.items[index]
        else:
            self.owed = first
        num_jobs = max(1, min(len(self.order), num_items))
        for waiting in self.order[:num_jobs]:
            left = num_tokens // num_jobs
            for index in sorted(waiting.items)[: num_items // num_jobs]:
                item = waiting.items[index]
                left -= item.num_tokens
                if left < 0:
                    break
                yield waiting, index, item
        yield from take_turns(self.order)


def take_turns(jobs: Sequence[Waiting[AnyItem]]) -> Iterator[tuple[Waiting[AnyItem], int, AnyItem]]:
    """One input of each job in their order, then one more of each, and so on. They may be taken meanwhile."""
    jobs = list(jobs)
    for indices in zip_longest(*(sorted(waiting.items) for waiting in jobs)):
        for waiting, index in zip(jobs, indices, strict=True):
            if index is not None:
                yield waiting, index, waiting.items[index]
