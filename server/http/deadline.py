"""A call's time: how long it may take, and that it ends when its client goes away."""

import asyncio
import math
from time import monotonic
from types import TracebackType

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


def allow_generation(call: Call, config: HttpConfig) -> None:
    """Of a route whose model says whether it generates: as much time as routes that always do, if the client does not
    say."""
    if call.header(TIMEOUT_HEADER) is None:
        call.set_deadline(config.generation_timeout_ms / 1000)


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
    with Watch(call) as watch, bodies.open(has_audio=route.has_audio) as held:
        call.held = held
        call.body = await (route.read_body or read_body)(call, held)
        watch.look_out()
        return await route.answer(call, state)


class Watch:
    """A context manager. Inside, the task is cancelled when the call's time is over, which comes out as
    DeadlineExceeded, and when its client goes away, which comes out as ClientGone. Neither ends a stream that is whole.

    One object for both, after asyncio.timeout: two of them and their frames took twice the time.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._is_open = True
        self._error: Exception | None = None

    def __enter__(self) -> "Watch":
        task = asyncio.current_task()
        assert task is not None
        self._task, self._loop = task, asyncio.get_running_loop()
        self._num_cancels = task.cancelling()
        self._set_timer()
        self._call.on_deadline = self._set_timer
        return self

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not math.isinf(self._call.deadline_s):
            self._timer = self._loop.call_later(self._call.deadline_s - monotonic(), self._expire)

    def look_out(self) -> None:
        """For the client, once the body has been read: the next message can only be the disconnect, which also comes
        when all has been answered (the ASGI specification). So this ends by itself; to be cancelled costs more, and
        leaves the garbage collector a traceback."""
        self._looking = self._loop.create_task(self._look())

    async def _look(self) -> None:
        while (await self._call.receive())["type"] != "http.disconnect":
            pass
        if self._is_open:
            self._stop(ClientGone())

    def _expire(self) -> None:
        timeout_ms = (self._call.deadline_s - self._call.start_s) * 1000
        self._stop(
            DeadlineExceeded(
                f"the answer was not complete within {timeout_ms:.0f} ms; allow more in {TIMEOUT_HEADER.decode()}, or "
                "ask for less at once"
            )
        )

    def _stop(self, error: Exception) -> None:
        if self._error is None and not self._call.has_ended:
            self._error = error
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._call.on_deadline = None
        self._is_open = False
        # Another cancellation, by the server's shutdown, goes its own way.
        if self._error is not None and self._task.uncancel() <= self._num_cancels and kind is asyncio.CancelledError:
            raise self._error from None
