"""The results of one job, between whoever makes them and whoever reads them, on one event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from server.wire.job import Result


class ResultStream:
    """Iterate over it until the last result; iterating raises the error that ended the job, if one did.

    Whoever leaves before the end must `cancel`. Mutable: what has not been read, and whether all has been put in; and
    `told`, the rows of which the reader has passed something on, so that they cannot begin anew.
    `on_cancel(rows)` tells the engine's side what is no longer wanted; no rows: nothing is.
    """

    def __init__(self, on_cancel: Callable[[Sequence[int]], None]) -> None:
        self._on_cancel: Callable[[Sequence[int]], None] | None = on_cancel
        self.is_over = False
        self.told: set[int] = set()
        self._is_read = False
        self._waiting: deque[Result | Exception] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._listener: tuple[Callable[[Result], None], Callable[[Exception], None]] | None = None

    def put(self, result: Result) -> None:
        if self.is_over:
            return
        listener = self._listener
        if result.is_last:
            self._end()
        if listener is not None:
            listener[0](result)
        else:
            self._hand_over(result)

    def fail(self, error: Exception) -> None:
        """The last thing that is heard."""
        if self.is_over:
            return
        listener = self._listener
        self._end()
        if listener is not None:
            listener[1](error)
        else:
            self._hand_over(error)

    def _end(self) -> None:
        """Whoever listens, and whoever would cancel, mostly holds the stream as well: what refers to itself stays until
        the garbage collector comes, which then stands still for thousands of jobs at once."""
        self.is_over = True
        self._listener = self._on_cancel = None

    def _hand_over(self, news: Result | Exception) -> None:
        self._waiting.append(news)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def restart(self, rows: npt.NDArray[np.int32]) -> None:
        """These rows are computed anew: what has not been read of them never will be. None of them may be `told`."""
        again = set(rows.tolist())
        self._waiting = deque(
            news for news in self._waiting if isinstance(news, Exception) or not again.intersection(news.rows.tolist())
        )
        self.put(Result(rows, {}, is_last=False, is_restart=True))

    def listen(self, on_result: Callable[[Result], None], on_error: Callable[[Exception], None]) -> None:
        """Be called instead of iterating; at once for what is there already."""
        self._listener = (on_result, on_error)
        while self._waiting:
            news = self._waiting.popleft()
            if isinstance(news, Exception):
                on_error(news)
            else:
                on_result(news)

    def __aiter__(self) -> "ResultStream":
        return self

    async def __anext__(self) -> Result:
        if self._is_read:
            raise StopAsyncIteration
        while not self._waiting:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        news = self._waiting.popleft()
        if isinstance(news, Exception):
            raise news
        self._is_read = news.is_last
        return news

    def cancel(self, rows: Sequence[int] = ()) -> None:
        """Nothing more is wanted of these rows, or of any. No effect after the end."""
        on_cancel = self._on_cancel
        if on_cancel is None:
            return
        if not rows:
            self._end()
        on_cancel(rows)
