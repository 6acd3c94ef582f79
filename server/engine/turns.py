"""Whose turn it is on cores that engines share, by what each has used of them and its share. Pure but for its table.

Start-time fair queueing (Goyal, Vin & Cheng 1996), the form of stride scheduling (Waldspurger & Weihl 1995) in which
nobody has to know beforehand how long a step takes: of the engines that wait, the one goes next that has used least
(device seconds / share). Who comes back from idling starts level with the one that runs, or a little before it: idling
saves up no more than MAX_CREDIT_S.

An engine whose next step depends on its last is away for a moment between any two. Were the cores given to another at
once, it would get one short step for each of the other's long ones, whatever its share (deceptive idleness, Iyer &
Druschel 2001). So who is first keeps its turn when a step ends, for a moment that the caller chooses.
"""

from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass

MAX_CREDIT_S = 0.05
"""Seconds / share that who was away may claim afterwards: some long steps of another, which came in between because an
engine was held up on its way to its next step. Without it every such delay would cost that engine a part of its share.
"""
HOLDER, TERM_END, CLOCK, HEADER = 0, 1, 2, 3
USED, WANTED, SEAT = 0, 1, 2


def table_size(num_seats: int) -> int:
    """In numbers."""
    return HEADER + SEAT * num_seats


@dataclass(frozen=True, slots=True)
class Turns:
    """`shares`: one positive number for each seat. `is_alive` says whether the engine of a seat still is; `wake` tells
    one that waits that its turn has come.

    Everything that changes is in `table`, zeros at first, which may be shared by processes; who calls holds the lock on
    it. It has one more than the seat whose turn it is, or 0; the time at which the turn ends whatever its holder does;
    the clock, which is what the holder had used when its step began; and for each seat what it has used (seconds /
    share) and for how long it wants a turn, 0 where it does not wait.
    """

    table: MutableSequence[float]
    shares: Sequence[float]
    is_alive: Callable[[int], bool]
    wake: Callable[[int], None]

    @property
    def holder(self) -> int | None:
        return int(self.table[HOLDER]) - 1 if self.table[HOLDER] else None

    def holds(self, seat: int) -> bool:
        return self.table[HOLDER] == seat + 1

    def ask(self, seat: int, term_s: float, now_s: float) -> bool:
        """Whether the turn is this seat's, for at most `term_s`; where not, it waits, and asks again when it is woken.

        A holder that has died, or has not come back at the end of its term, loses its turn: a turn spares engines one
        another's way, and nothing breaks where two compute at once.
        """
        if self.holds(seat):
            self.table[TERM_END] = now_s + term_s
            return True
        if self.table[wanted_at(seat)] == 0.0:
            self.table[used_at(seat)] = max(self.table[used_at(seat)], self.table[CLOCK] - MAX_CREDIT_S)
            self.table[wanted_at(seat)] = term_s
        holder = self.holder
        if holder is None or now_s >= self.table[TERM_END] or not self.is_alive(holder):
            self.pass_on(seat, now_s)
        return self.holds(seat)

    def settle(self, seat: int, used_s: float) -> None:
        """Whatever a seat has had of the cores is charged, also what it had beyond its term."""
        self.table[used_at(seat)] += used_s / self.shares[seat]

    def keep(self, seat: int) -> bool:
        """After a step: whether the turn stays this seat's, as others wait and it is still first."""
        used = self.table[used_at(seat)]
        others = [other for other in self.list_waiting() if other != seat]
        if not self.holds(seat) or not others or any(self.table[used_at(other)] <= used for other in others):
            return False
        self.table[CLOCK] = used
        return True

    def leave(self, seat: int, now_s: float) -> None:
        """Give the turn back, or stop waiting for one. The first of those that wait is woken."""
        self.table[wanted_at(seat)] = 0.0
        if self.holds(seat):
            self.pass_on(seat, now_s)

    def pass_on(self, seat: int, now_s: float) -> None:
        """`seat` is who calls, and needs no waking."""
        waiting = [each for each in self.list_waiting() if each == seat or self.is_alive(each)]
        if not waiting:
            self.table[HOLDER] = 0.0
            return
        first = min(waiting, key=lambda each: self.table[used_at(each)])
        self.table[CLOCK] = self.table[used_at(first)]
        self.table[TERM_END] = now_s + self.table[wanted_at(first)]
        self.table[wanted_at(first)] = 0.0
        self.table[HOLDER] = first + 1
        if first != seat:
            self.wake(first)

    def list_waiting(self) -> list[int]:
        return [seat for seat in range(len(self.shares)) if self.table[wanted_at(seat)] > 0.0]


def used_at(seat: int) -> int:
    return HEADER + SEAT * seat + USED


def wanted_at(seat: int) -> int:
    return HEADER + SEAT * seat + WANTED
