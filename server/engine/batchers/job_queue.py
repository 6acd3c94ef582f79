"""Jobs waiting for a step, in the order they should run, each with as many inputs as it has. Pure.

Lowest priority number first; of equal ones the earliest deadline. A deadline further away than HORIZON_S counts as that
far: a patient job must not wait behind every impatient one that comes later.

A step is shared out fairly (max-min, Bertsekas and Gallager, 1987): in their order, each job first gets its part of the
budget, which is the budget over the number of jobs that wait; then what is left goes to those that want more. So a job
no larger than its part is in the next step, whatever comes before it: a short text never waits for the 2,048 others of
somebody's call.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
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

    def share_out(self, budget_tokens: int) -> Iterator[tuple[Waiting[AnyItem], int, AnyItem]]:
        """Inputs in the order in which they should be put into a step of that budget. Whoever reads may take what it is
        given, and stop at any time."""
        part = budget_tokens // max(1, len(self.order))
        rests: list[tuple[Waiting[AnyItem], list[int]]] = []
        for waiting in list(self.order):
            num_tokens = 0
            indices = list(waiting.items)
            for place, index in enumerate(indices):
                item = waiting.items[index]
                if num_tokens and num_tokens + item.num_tokens > part:
                    rests.append((waiting, indices[place:]))
                    break
                num_tokens += item.num_tokens
                yield waiting, index, item
        for waiting, indices in rests:
            for index in indices:
                yield waiting, index, waiting.items[index]
