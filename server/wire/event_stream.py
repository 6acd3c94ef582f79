"""The events of one generation, between whoever makes them and whoever reads them, on one event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable

from server.wire.job import GenerationEvent


class EventStream:
    """A GenerationStream. Mutable: the events not read yet, and which answers have not ended.

    `on_stop(index)` and `on_cancel()` tell the engine's side what is no longer wanted.
    """

    def __init__(self, num_answers: int, on_stop: Callable[[int], None], on_cancel: Callable[[], None]) -> None:
        self.on_stop, self.on_cancel = on_stop, on_cancel
        self.open = set(range(num_answers))
        self.coming = set(range(num_answers))
        """Answers whose end has not been put in; `open` are those whose end has not been read."""
        self.waiting: asyncio.Queue[list[GenerationEvent] | Exception] = asyncio.Queue()
        self.is_over = False

    def put(self, events: list[GenerationEvent]) -> None:
        self.coming -= {event.index for event in events if event.finish_reason}
        self.waiting.put_nowait(events)

    @property
    def is_complete(self) -> bool:
        """Whether all of it has been put in."""
        return not self.coming

    def fail(self, error: Exception) -> None:
        """The last thing that is heard."""
        self.is_over = True
        self.waiting.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[list[GenerationEvent]]:
        while self.open:
            found = await self.waiting.get()
            if isinstance(found, Exception):
                raise found
            wanted = [event for event in found if event.index in self.open]
            self.open -= {event.index for event in found if event.finish_reason}
            self.is_over = not self.open
            if wanted:
                yield wanted

    def stop(self, index: int) -> None:
        self.open.discard(index)
        self.coming.discard(index)
        if not self.is_over:
            self.on_stop(index)
            self.is_over = not self.open
            self.waiting.put_nowait([])  # whoever waits for events may have nothing to wait for any more

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.on_cancel()
