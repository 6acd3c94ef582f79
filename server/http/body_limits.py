"""What bodies may cost a process, refused before the work is done: bytes of one and of all, and values to parse.

pydantic holds the GIL while it parses, so a thread would not help: what a body may hold is bounded instead. Measured
on a core of a 2 GHz server: 0.1 us for an item of a list, 0.3 us for a text in one, 1 to 2 us for an object, a list or
an object's member in fields of any content, 11 ns for a byte of escapes or of digits.
"""

import asyncio
from types import TracebackType

import numpy as np

from server.config import HttpConfig
from server.errors import BodyTooLarge, Overloaded

SMALL_BYTES = 65_536
"""So much of every body counts against no budget, and parses at once: the number of connections bounds it."""
CONTAINER_WEIGHT = 20
"""What an object, a list or a member of an object costs, in items of a list."""
TEXT_WEIGHT = 2
"""What a string costs besides being an item."""
RETRY_S = 1.0


class BodyBudget:
    """What this process holds of bodies at one time, and until their answers' end of what they said, which is about as
    large: nothing else bounds texts that are cut. Mutable: how much that is. Used from one thread."""

    def __init__(self, http: HttpConfig) -> None:
        self.max_bytes = int(http.max_body_mb * 1e6)
        self.max_audio_bytes = int(min(http.max_audio_mb, http.max_bodies_mb) * 1e6)
        self.max_items = http.max_body_items
        self.max_held_bytes = int(http.max_bodies_mb * 1e6)
        self.held_bytes = 0
        self.turn = asyncio.Lock()

    def open(self, *, has_audio: bool = False) -> "HeldBody":
        return HeldBody(self, self.max_audio_bytes if has_audio else self.max_bytes)


class HeldBody:
    """One body's part of the budget, as a context manager. Mutable: the bytes that have come."""

    def __init__(self, budget: BodyBudget, max_bytes: int) -> None:
        self.budget, self.max_bytes = budget, max_bytes
        self.num_bytes = 0

    def __enter__(self) -> "HeldBody":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.budget.held_bytes -= count_large(self.num_bytes)
        self.num_bytes = 0

    def expect(self, num_bytes: int) -> None:
        """Before a byte is read, where its size was announced; nothing is taken for a mere announcement.

        Raises BodyTooLarge, Overloaded.
        """
        if num_bytes > self.max_bytes:
            raise BodyTooLarge(
                f"the body is over the limit of {self.max_bytes} bytes (after decompression); send several requests"
            )
        self.check_room(num_bytes)

    def check_room(self, num_bytes: int) -> None:
        """Whether it may become so large beside all others. Raises Overloaded."""
        budget = self.budget
        if num_bytes <= SMALL_BYTES:
            return
        more = count_large(num_bytes) - count_large(self.num_bytes)
        if more and budget.held_bytes + more > budget.max_held_bytes:
            raise Overloaded(
                "the bodies of other requests fill the memory there is for them; try again later",
                retry_after_s=RETRY_S,
                code="bodies_full",
            )

    def add(self, num_bytes: int) -> None:
        """So many bytes more have come. Raises BodyTooLarge, Overloaded."""
        self.expect(self.num_bytes + num_bytes)
        self.count(num_bytes)

    def hold(self, num_bytes: int) -> None:
        """So much comes of it beside what it said, and is held as long, such as sound. Raises Overloaded."""
        self.check_room(self.num_bytes + num_bytes)
        self.count(num_bytes)

    def count(self, num_bytes: int) -> None:
        before = self.num_bytes
        self.num_bytes += num_bytes
        self.budget.held_bytes += count_large(self.num_bytes) - count_large(before)

    async def settle(self, json: bytes = b"") -> None:
        """Before the body is parsed, in the step of the event loop that comes back from here: large ones take turns,
        and between two of them everybody else has one. `json`: what of it is that. Raises BodyTooLarge."""
        if self.num_bytes > SMALL_BYTES:
            async with self.budget.turn:
                await asyncio.sleep(0)
                check_items(json, self.budget.max_items)
                await asyncio.sleep(0)
        else:
            check_items(json, self.budget.max_items)


def count_large(num_bytes: int) -> int:
    """Of these bytes, those that count."""
    return max(num_bytes - SMALL_BYTES, 0)


def check_items(body: bytes, max_items: int) -> None:
    """Raises BodyTooLarge. `bytes.count` takes 1 ns a byte; strings, where commas are no items, are only left out where
    that decides."""
    if len(body) * CONTAINER_WEIGHT <= max_items:  # most bodies are too short for it
        return
    if weigh(body, quotes=2) > max_items and weigh(strip_strings(body), quotes=1) > max_items:
        raise BodyTooLarge(
            f"the body has too many values: items of lists (texts count {1 + TEXT_WEIGHT}), and objects, lists and "
            f"members of objects, which count {CONTAINER_WEIGHT} each, may be {max_items} in all; send several requests"
        )


def weigh(body: bytes, quotes: int) -> int:
    """How many items of lists take as long to parse as this JSON, which has so many quotes for a string."""
    num_containers = body.count(b"[") + body.count(b"{") + body.count(b":")
    num_texts = body.count(b'"') // quotes
    return body.count(b",") + TEXT_WEIGHT * num_texts + CONTAINER_WEIGHT * num_containers


def strip_strings(body: bytes) -> bytes:
    """What stands outside of strings, and the quote at the end of each, in time that depends on the size alone (5 ns a
    byte)."""
    if b"\\" in body:
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    plain = np.frombuffer(body, np.uint8)
    is_string = np.cumsum(plain == ord('"'), dtype=np.uint8) & 1
    outside: bytes = plain[is_string == 0].tobytes()
    return outside
