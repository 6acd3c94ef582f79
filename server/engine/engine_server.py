"""The engine side of the process boundary: puts an EngineLoop behind a Unix socket. Knows no torch."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from server.engine.engine_loop import EngineLoop
from server.wire.event_stream import EventStream
from server.wire.job import DeadlineExceeded, EngineFailure, EngineStatus, EngineUnavailable, Unservable
from server.wire.messages import (
    Answered,
    Cancel,
    Failed,
    Generate,
    Message,
    News,
    Status,
    Stop,
    Submit,
    decode_call,
    frame,
    read_message,
)

logger = logging.getLogger("padless.engine")

STATUS_PERIOD_S = 0.25


class EngineServer:
    """Mutable: the open connections. A connection that ends takes its calls with it."""

    def __init__(self, loop: EngineLoop, path: Path) -> None:
        self.loop = loop
        self.path = path
        self.connections: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.server = await asyncio.start_unix_server(self.accept, self.path)

    async def close(self) -> None:
        """Stop accepting and drop the connections; their calls are cancelled."""
        if self.server is not None:
            self.server.close()
        for connection in list(self.connections):
            connection.cancel()
            with suppress(asyncio.CancelledError):
                await connection
        self.path.unlink(missing_ok=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(Connection(self.loop, reader, writer).serve())
        self.connections.add(connection)
        connection.add_done_callback(self.connections.discard)


class Connection:
    """One HTTP process. Mutable: its calls under way."""

    def __init__(self, loop: EngineLoop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.loop, self.reader, self.writer = loop, reader, writer
        self.calls: dict[int, asyncio.Task[None]] = {}
        self.streams: dict[int, EventStream] = {}

    async def serve(self) -> None:
        reporter = asyncio.create_task(self.report())
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    self.receive(await read_message(self.reader))
        finally:
            reporter.cancel()
            for call in self.calls.values():
                call.cancel()
            self.writer.close()

    def receive(self, message: Message) -> None:
        if isinstance(message, Submit):
            task = asyncio.create_task(self.run(message))
            self.calls[message.call_id] = task
            task.add_done_callback(lambda _: self.calls.pop(message.call_id, None))
        elif isinstance(message, Generate):
            task = asyncio.create_task(self.generate(message))
            self.calls[message.call_id] = task
            task.add_done_callback(lambda _: self.calls.pop(message.call_id, None))
        elif isinstance(message, Stop) and message.call_id in self.streams:
            self.streams[message.call_id].stop(message.index)
        elif isinstance(message, Cancel) and message.call_id in self.calls:
            self.calls[message.call_id].cancel()

    async def run(self, message: Submit) -> None:
        with self.telling_failures(message.call_id):
            answer = await self.loop.run(decode_call(message), message.deadline_s)
            self.send(Answered(message.call_id, answer.values.tobytes(), answer.queue_s, answer.engine_s))

    async def generate(self, message: Generate) -> None:
        with self.telling_failures(message.call_id):
            prompt = np.frombuffer(message.input_ids, np.int32)
            stream = self.streams[message.call_id] = self.loop.generate(prompt, message.params, message.deadline_s)
            try:
                async for events in stream:
                    self.send(News(message.call_id, events))
            finally:
                self.streams.pop(message.call_id)
                stream.cancel()

    @contextmanager
    def telling_failures(self, call_id: int) -> Iterator[None]:
        try:
            yield
        except (EngineUnavailable, DeadlineExceeded, EngineFailure, Unservable) as error:
            self.send(Failed(call_id, type(error).__name__, str(error), getattr(error, "param", None)))
        except Exception as error:  # a bug of ours; whoever waits must hear of it all the same
            logger.exception("a call failed")
            self.send(Failed(call_id, EngineFailure.__name__, f"{type(error).__name__}: {error}"))

    async def report(self) -> None:
        """Tell the other side how things stand, now and ever so often."""
        while True:
            self.send(describe_status(self.loop.status()[0]))
            await asyncio.sleep(STATUS_PERIOD_S)

    def send(self, message: Message) -> None:
        if not self.writer.is_closing():
            self.writer.write(frame(message))


def describe_status(status: EngineStatus) -> Status:
    return Status(status.is_ready, status.reason, status.queued_tokens, status.tokens_per_s, status.info)
