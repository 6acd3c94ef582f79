"""The lease on cores that several engine processes share: who has it computes, the others sleep.

Threads of a kernel wait for one another at the end of every parallel region. Where two engines run on the same cores,
those who wait lose whole slices of the scheduler to the other engine, and both get a small part of what they could
(docs/decisions/0016). So engines take turns, step by step (`turns`).

The table of turns is a small file that all map, and a lock on it (flock(2)) is held for some microseconds to change
it. Each engine has a named pipe, which is rung to wake it, and holds a lock on that as long as it lives: the kernel
gives back what a dead engine held, whatever killed it.
"""

import fcntl
import mmap
import os
import select
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import cast

from server.engine.turns import Turns, table_size

LEAST_TERM_S, TERM_FACTOR = 0.5, 4.0
"""A turn ends after so long, or so many times what the step should take, though the step has not: its engine hangs or
is stopped, or was badly predicted."""
LOOK_PERIOD_S = 0.05
"""How often one that waits looks by itself whether the holder has died or the term has ended."""
KEEP_S = 0.002
"""How long a turn is kept between two steps. The loop of a decoder needs less to settle one and form the next."""
NUMBER_BYTES = 8


class CoreLease:
    """One engine's hold on cores that it shares with others. Belongs to one thread.

    `path` names files that engines with the same `shares` have in common; `seat` is this engine's place in them.
    Mutable: `is_kept`, whether it has the turn between two steps; `turn_s`, when a step of it was last given one; and
    `since_s`, from when on that has not been charged.
    """

    def __init__(self, path: Path, shares: Sequence[float], seat: int) -> None:
        """Raises OSError."""
        self.seat = seat
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = NUMBER_BYTES * table_size(len(shares))
        os.ftruncate(self.descriptor, size)
        table = memoryview(mmap.mmap(self.descriptor, size)).cast("d")
        self.bells = [open_bell(path.with_name(f"{path.name}-{other}")) for other in range(len(shares))]
        fcntl.flock(self.bells[seat], fcntl.LOCK_EX)
        self.poll = select.poll()
        self.poll.register(self.bells[seat], select.POLLIN)
        self.turns = Turns(cast(MutableSequence[float], table), shares, self.is_alive, self.ring)
        self.since_s = self.turn_s = 0.0
        self.is_kept = False
        with self.locked():  # whatever an earlier incarnation left behind
            self.turns.leave(seat, monotonic())

    def acquire(self, predicted_s: float) -> None:
        """Sleep until it is our turn, for a step that should take so long."""
        term_s = max(LEAST_TERM_S, TERM_FACTOR * predicted_s)
        while not self.ask(term_s):
            if self.poll.poll(LOOK_PERIOD_S * 1e3):
                os.read(self.bells[self.seat], 4096)
        self.turn_s = self.since_s = monotonic()

    @property
    def is_awaited(self) -> bool:
        """Whether others wait for the turn. Without the lock: it may be a moment old."""
        return any(seat != self.seat for seat in self.turns.list_waiting())

    def ask(self, term_s: float) -> bool:
        now_s = monotonic()
        with self.locked():
            if self.is_kept:
                self.charge(now_s)
            self.is_kept = False
            return self.turns.ask(self.seat, term_s, now_s)

    def end_step(self) -> None:
        """Give the turn back, unless it is still ours: then it is kept, and whoever has no step for KEEP_S gives it
        back."""
        now_s = monotonic()
        with self.locked():
            self.charge(now_s)
            self.is_kept = self.turns.keep(self.seat)
            if not self.is_kept:
                self.turns.leave(self.seat, now_s)

    def give_back(self) -> None:
        """A turn that was kept."""
        now_s = monotonic()
        with self.locked():
            self.charge(now_s)
            self.turns.leave(self.seat, now_s)
        self.is_kept = False

    def charge(self, now_s: float) -> None:
        self.turns.settle(self.seat, now_s - self.since_s)
        self.since_s = now_s

    def close(self) -> None:
        with self.locked():
            self.turns.leave(self.seat, monotonic())
        for descriptor in (*self.bells, self.descriptor):
            os.close(descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def is_alive(self, seat: int) -> bool:
        if seat == self.seat:
            return True
        try:
            fcntl.flock(self.bells[seat], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.bells[seat], fcntl.LOCK_UN)
        return False

    def ring(self, seat: int) -> None:
        with suppress(BlockingIOError):  # it has rung often, and nobody has listened yet
            os.write(self.bells[seat], b".")


def open_bell(path: Path) -> int:
    """A named pipe that never ends, as whoever reads from it could write, too."""
    with suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)
