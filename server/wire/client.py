"""The HTTP side's view of engines, and the one that talks to an engine process over its Unix socket."""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol

from server.errors import EngineUnavailable
from server.wire.job import EngineStatus, Job, Result
from server.wire.messages import Cancel, Message, Results, Status, frame, read_message, read_result, write_job
from server.wire.result_stream import ResultStream

logger = logging.getLogger("padless.http")

RECONNECT_S = 0.05
WATCH_PERIOD_S = 0.25
SILENT_S = 2.0
"""An engine that has said nothing for so long hangs; it speaks four times a second."""


class EngineClient(Protocol):
    """One model's engine, or several of them."""

    def statuses(self) -> tuple[EngineStatus, ...]:
        """One entry per replica."""

    def submit(self, job: Job) -> ResultStream:
        """Begin a job; it may be split over steps and replicas, and comes back in any order.

        Raises EngineUnavailable and Unservable, at once or from the stream; from there also DeadlineExceeded and
        EngineFailure. Whoever does not read the stream to its end must cancel it, which frees the job's place.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pending:
    """A job that an engine works on."""

    stream: ResultStream
    load_tokens: int


class SocketClient:
    """Mutable: the connection, the jobs under way, and the engine's last status."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids = itertools.count()
        self.pending: dict[int, Pending] = {}
        self.pending_tokens = 0
        self.writer: asyncio.StreamWriter | None = None
        self.num_connections = 0
        self.status = EngineStatus(False, "starting")
        self.last_heard_s = 0.0
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.tasks = [asyncio.create_task(self.stay_connected()), asyncio.create_task(self.watch())]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.disconnect("the server is stopping")

    def statuses(self) -> tuple[EngineStatus, ...]:
        return (self.status,)

    def submit(self, job: Job) -> ResultStream:
        """See EngineClient."""
        if self.writer is None:
            raise EngineUnavailable(f"the engine is not there: {self.status.reason}")
        job_id = next(self.ids)

        def cancel(rows: Sequence[int]) -> None:
            if job_id in self.pending:
                self.send(Cancel(job_id, tuple(rows)))
            if not rows:
                self.forget(job_id)

        stream = ResultStream(cancel)
        pending = self.pending[job_id] = Pending(stream, job.load_tokens)
        self.pending_tokens += pending.load_tokens
        self.send(write_job(job_id, job))
        return stream

    def forget(self, job_id: int) -> ResultStream | None:
        """Nothing more is to come of it."""
        found = self.pending.pop(job_id, None)
        if found is None:
            return None
        self.pending_tokens -= found.load_tokens
        return found.stream

    def send(self, message: Message) -> None:
        if self.writer is not None:
            self.writer.write(frame(message))

    async def stay_connected(self) -> None:
        """Connect, read until the engine is gone, again: an engine that died is started anew by the supervisor."""
        while True:
            try:
                reader, self.writer = await asyncio.open_unix_connection(self.path)
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            self.num_connections += 1
            self.last_heard_s = monotonic()
            try:
                while self.writer is not None:
                    self.receive(await read_message(reader))
            except (asyncio.IncompleteReadError, ConnectionError):
                self.disconnect("the engine process ended and is being started again")
            except Exception as error:  # a bug, ours or the engine's; the connection is of no more use
                logger.exception("an engine sent what cannot be understood")
                self.disconnect(f"the connection to the engine broke: {type(error).__name__}: {error}")
            await asyncio.sleep(RECONNECT_S)

    async def watch(self) -> None:
        """An engine may also stop without an end: its process stopped, or its loop stuck."""
        while True:
            before_s = monotonic()
            await asyncio.sleep(WATCH_PERIOD_S)
            now_s = monotonic()
            if now_s - before_s > SILENT_S / 2:
                self.last_heard_s = now_s  # it was this process that stood still; what came meanwhile is yet to be read
            silent_s = now_s - self.last_heard_s
            if self.writer is not None and silent_s > SILENT_S:
                self.disconnect(f"the engine has said nothing for {silent_s:.1f} s")

    def disconnect(self, reason: str) -> None:
        """Nothing may hang: every job under way is told now. No effect where that has been done."""
        if self.writer is None and self.num_connections:
            return
        self.status = EngineStatus(False, reason, info=self.status.info)
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        for job_id in list(self.pending):
            stream = self.forget(job_id)
            assert stream is not None
            stream.fail(EngineUnavailable(reason))

    def receive(self, message: Message) -> None:
        self.last_heard_s = monotonic()
        if isinstance(message, Status):
            self.status = EngineStatus(message.is_ready, message.reason, message.tokens_per_s, message.info)
            return
        assert isinstance(message, Results), "An engine sends nothing else. This is a bug."
        if message.job_id not in self.pending:
            return
        result = read_result(message)
        stream = self.pending[message.job_id].stream
        if message.is_last:
            self.forget(message.job_id)
        if isinstance(result, Result):
            stream.put(result)
        else:
            stream.fail(result)
