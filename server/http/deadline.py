"""A call's time: until when it may take, and that it ends when its client goes away."""

import asyncio
import math
from time import monotonic
from types import TracebackType

from starlette.types import Receive

from server.config import HttpConfig
from server.errors import DeadlineExceeded, InvalidField
from server.http.body import read_body
from server.http.body_limits import BodyBudget
from server.http.call import Call, ClientGone, Reply
from server.http.route import Route
from server.http.state import ServerState

TIMEOUT_HEADER = b"x-request-timeout-ms"
MAX_TIMEOUT_MS = 86_400_000.0


def settle_deadline(call: Call, route: Route, config: HttpConfig) -> None:
    """The client's wish, or the server's setting for such a route. Raises InvalidField naming the header."""
    if route.deadline is None:
        return
    given = call.header(TIMEOUT_HEADER)
    timeout_ms = config.generation_timeout_ms if route.deadline == "generation" else config.default_timeout_ms
    call.deadline_s = call.start_s + (timeout_ms if given is None else parse_timeout(given)) / 1000


def parse_timeout(value: str) -> float:
    """Milliseconds. Raises InvalidField naming the header."""
    name = TIMEOUT_HEADER.decode()
    try:
        timeout_ms = float(value)
    except ValueError:
        timeout_ms = math.nan
    if not 0 < timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidField(
            f"{name} must be a number of milliseconds above 0 and at most {MAX_TIMEOUT_MS:.0f}, not {value[:50]!r}",
            param=name,
        )
    return timeout_ms


async def run_in_time(call: Call, route: Route, state: ServerState, bodies: BodyBudget) -> Reply | None:
    """Read the body and compute the answer. Raises DeadlineExceeded, ClientGone, and what the route raises."""
    if route.method == "GET":
        return await route.answer(call, state)
    timeout = asyncio.timeout(None if math.isinf(call.deadline_s) else call.deadline_s - monotonic())
    try:
        async with timeout:
            return await read_and_answer(call, route, state, bodies)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineExceeded(
            f"the answer was not complete within {(call.deadline_s - call.start_s) * 1000:.0f} ms"
        ) from None


async def read_and_answer(call: Call, route: Route, state: ServerState, bodies: BodyBudget) -> Reply | None:
    with bodies.open() as held:
        call.body = await read_body(call, held)
        async with DisconnectWatch(call.receive):
            return await route.answer(call, state)


class DisconnectWatch:
    """While it is open, a client that goes away cancels the task inside, and ClientGone comes out.

    To be opened once the body has been read: the next message can only be the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        # A second cancellation, by the server's shutdown, goes its own way.
        if self._is_gone and self._task.uncancel() == 0:
            raise ClientGone from None
