"""The engine side of the process boundary: puts an EngineLoop behind a Unix socket. Knows no torch."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from server.errors import EngineFailure, ServiceError
from server.wire.client import EngineClient
from server.wire.job import EngineStatus, Result
from server.wire.messages import (
    Cancel,
    Message,
    Status,
    Submit,
    frame,
    read_job,
    read_message,
    write_failure,
    write_result,
)
from server.wire.result_stream import ResultStream

logger = logging.getLogger("padless.engine")

STATUS_PERIOD_S = 0.25


class EngineServer:
    """`params`: the type of `Job.params`, by task. Mutable: the open connections; one that ends takes its jobs away."""

    def __init__(self, engine: EngineClient, path: Path, params: Mapping[str, type]) -> None:
        self.engine = engine
        self.path = path
        self.params = params
        self.connections: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.server = await asyncio.start_unix_server(self.accept, self.path)

    async def close(self) -> None:
        """Stop accepting and drop the connections; their jobs are cancelled."""
        if self.server is not None:
            self.server.close()
        for connection in list(self.connections):
            connection.cancel()
            with suppress(asyncio.CancelledError):
                await connection
        self.path.unlink(missing_ok=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(Connection(self.engine, self.params, reader, writer).serve())
        self.connections.add(connection)
        connection.add_done_callback(self.connections.discard)


class Connection:
    """One HTTP process. Mutable: its jobs under way."""

    def __init__(
        self,
        engine: EngineClient,
        params: Mapping[str, type],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.engine, self.params, self.reader, self.writer = engine, params, reader, writer
        self.streams: dict[int, ResultStream] = {}

    async def serve(self) -> None:
        reporter = asyncio.create_task(self.report())
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    self.receive(await read_message(self.reader))
        finally:
            reporter.cancel()
            for stream in self.streams.values():
                stream.cancel()
            self.writer.close()

    def receive(self, message: Message) -> None:
        if isinstance(message, Submit):
            self.begin(message)
        elif isinstance(message, Cancel) and message.job_id in self.streams:
            self.streams[message.job_id].cancel(message.rows)
            if not message.rows:
                del self.streams[message.job_id]

    def begin(self, message: Submit) -> None:
        job_id = message.job_id

        def on_result(result: Result) -> None:
            if result.is_last:
                self.streams.pop(job_id, None)
            self.send(write_result(job_id, result))

        def on_error(error: Exception) -> None:
            self.streams.pop(job_id, None)
            self.send_failure(job_id, error)

        try:
            stream = self.engine.submit(read_job(message, self.params[message.task]))
        except Exception as error:
            self.send_failure(job_id, error)
            return
        self.streams[job_id] = stream
        stream.listen(on_result, on_error)

    def send_failure(self, job_id: int, error: Exception) -> None:
        if not isinstance(error, ServiceError):  # a bug of ours; whoever waits must hear of it all the same
            logger.error("a job failed", exc_info=error)
            error = EngineFailure(f"{type(error).__name__}: {error}")
        self.send(write_failure(job_id, error))

    async def report(self) -> None:
        """Tell the other side how things stand, now and ever so often."""
        while True:
            self.send(describe_status(self.engine.statuses()[0]))
            await asyncio.sleep(STATUS_PERIOD_S)

    def send(self, message: Message) -> None:
        if not self.writer.is_closing():
            self.writer.write(frame(message))


def describe_status(status: EngineStatus) -> Status:
    return Status(status.is_ready, status.reason, status.tokens_per_s, status.info)
