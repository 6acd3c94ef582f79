"""A stream of server-sent events that is never silent for long: proxies cut off what says nothing for a minute."""

import asyncio
from time import monotonic
from types import TracebackType

from server.http.call import Call

DONE = b"[DONE]"
"""The last event of streams that are like OpenAI's."""
PING = b": ping\n\n"
"""A comment; parsers of events skip it (HTML standard, 9.2.6)."""


class EventStream:
    """An async context manager. The answer's head goes with the first that is sent: whatever fails earlier has a status
    of its own, later errors are events. Mutable: when something was last sent."""

    def __init__(self, call: Call, ping_s: float) -> None:
        self._call, self._ping_s = call, ping_s
        self._sending = asyncio.Lock()
        self._last_s = monotonic()

    async def __aenter__(self) -> "EventStream":
        self._pinger = asyncio.create_task(self._ping())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pinger.cancel()
        # An error's event comes next, and must not fall into a ping.
        await asyncio.wait([self._pinger])

    async def write(self, *events: bytes) -> None:
        """JSON on one line each; they leave at once, in one piece."""
        async with self._sending:
            await self._call.write_events(*events)
            self._last_s = monotonic()

    async def end(self) -> None:
        async with self._sending:
            await self._call.end()
            self._last_s = float("inf")

    async def _ping(self) -> None:
        while True:
            silent_s = monotonic() - self._last_s
            if silent_s < self._ping_s:
                await asyncio.sleep(min(self._ping_s - silent_s, self._ping_s))
                continue
            async with self._sending:
                await self._call.write(PING)
                self._last_s = monotonic()
