"""The HTTP side of the process boundary: calls go out over a Unix socket, answers come back, a dead engine is noticed.

`SocketEngine` talks to one engine process, `ReplicaSet` spreads calls over several.
"""

import asyncio
import itertools
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np

from server.wire.event_stream import EventStream
from server.wire.job import (
    Answer,
    DeadlineExceeded,
    EngineClient,
    EngineFailure,
    EngineStatus,
    EngineUnavailable,
    GenerationParams,
    GenerationStream,
    TokenArray,
    TokenSequence,
    Unservable,
)
from server.wire.messages import (
    Answered,
    Cancel,
    Failed,
    Generate,
    Message,
    News,
    Status,
    Stop,
    encode_call,
    frame,
    read_message,
)

logger = logging.getLogger("padless.http")

RECONNECT_S = 0.05
STALE_AFTER_S = 3.0
"""An engine that has said nothing for so long is stuck; it speaks four times a second."""
SPLIT_TOKENS = 1024
"""Calls of more tokens than this are cut and spread over the replicas."""

FAILURES: dict[str, type[RuntimeError]] = {
    error.__name__: error for error in (EngineUnavailable, DeadlineExceeded, EngineFailure)
}


class SocketEngine:
    """Mutable: the connection, the calls waiting for an answer, and the engine's last status."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids = itertools.count()
        self.pending: dict[int, asyncio.Future[Answer]] = {}
        self.streams: dict[int, Streaming] = {}
        self.pending_tokens = 0
        self.writer: asyncio.StreamWriter | None = None
        self.num_connections = 0
        self.last = EngineStatus(False, "starting")
        self.last_heard_s = 0.0
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(self.stay_connected())

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        self.disconnect("the server is stopping")

    def status(self) -> tuple[EngineStatus, ...]:
        silent_s = monotonic() - self.last_heard_s
        if self.last.is_ready and silent_s > STALE_AFTER_S:
            return (replace(self.last, is_ready=False, reason=f"the engine has said nothing for {silent_s:.0f} s"),)
        return (self.last,)

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        """See EngineClient."""
        if self.writer is None:
            raise EngineUnavailable(f"the engine is not there: {self.last.reason}")
        call_id = next(self.ids)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        num_tokens = sum(sequence.num_tokens for sequence in sequences)
        self.pending[call_id] = future
        self.pending_tokens += num_tokens
        self.writer.write(frame(encode_call(call_id, sequences, deadline_s)))
        try:
            return await future
        except asyncio.CancelledError:
            self.send(Cancel(call_id))
            raise
        finally:
            self.pending.pop(call_id, None)
            self.pending_tokens -= num_tokens

    def generate(self, prompt: TokenArray, params: GenerationParams, deadline_s: float) -> EventStream:
        """See EngineClient."""
        if self.writer is None:
            raise EngineUnavailable(f"the engine is not there: {self.last.reason}")
        call_id = next(self.ids)

        def cancel() -> None:
            self.end_stream(call_id)
            self.send(Cancel(call_id))

        def stop(index: int) -> None:
            self.send(Stop(call_id, index))
            if stream.is_complete:
                self.end_stream(call_id)

        stream = EventStream(params.num_sequences, stop, cancel)
        num_tokens = len(prompt) + params.max_tokens * max(params.num_sequences, params.beam_width)
        self.streams[call_id] = Streaming(stream, num_tokens)
        self.pending_tokens += num_tokens
        self.send(Generate(call_id, deadline_s, prompt.astype(np.int32).tobytes(), params))
        return stream

    def end_stream(self, call_id: int) -> EventStream | None:
        """Forget it; nothing more is to come."""
        found = self.streams.pop(call_id, None)
        if found is None:
            return None
        self.pending_tokens -= found.num_tokens
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
            try:
                while True:
                    self.receive(await read_message(reader))
            except (asyncio.IncompleteReadError, ConnectionError):
                self.disconnect("the engine process ended and is being started again")
            except Exception as error:  # a bug, ours or the engine's; the connection is of no more use
                logger.exception("an engine sent what cannot be understood")
                self.disconnect(f"the connection to the engine broke: {type(error).__name__}: {error}")
            await asyncio.sleep(RECONNECT_S)

    def disconnect(self, reason: str) -> None:
        """Nothing may hang: every call that waits is told now."""
        self.last = EngineStatus(False, reason, num_restarts=self.num_connections, info=self.last.info)
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        for future in self.pending.values():
            if not future.done():
                future.set_exception(EngineUnavailable(reason))
        for call_id in list(self.streams):
            stream = self.end_stream(call_id)
            assert stream is not None
            stream.fail(EngineUnavailable(reason))

    def receive(self, message: Message) -> None:
        self.last_heard_s = monotonic()
        if isinstance(message, Status):
            self.last = EngineStatus(
                message.is_ready,
                message.reason,
                message.queued_tokens,
                message.tokens_per_s,
                num_restarts=self.num_connections - 1,
                info=message.info,
            )
            return
        assert isinstance(message, (Answered, News, Failed)), "An engine sends nothing else. This is a bug."
        if message.call_id in self.streams:
            self.receive_news(message)
            return
        future = self.pending.get(message.call_id)
        if future is None or future.done() or isinstance(message, News):
            return
        if isinstance(message, Failed):
            future.set_exception(make_failure(message))
            return
        info = self.last.info
        assert info is not None, "An engine says what it is before it answers. This is a bug."
        values = np.frombuffer(message.values, np.float32).reshape(-1, int(info.outputs[0].dims[-1]))
        future.set_result(Answer(values, message.queue_s, message.engine_s))

    def receive_news(self, message: Answered | News | Failed) -> None:
        stream = self.streams[message.call_id].stream
        if isinstance(message, News):
            stream.put(message.events)
            if stream.is_complete:
                self.end_stream(message.call_id)
        elif isinstance(message, Failed):
            stream.fail(make_failure(message))
            self.end_stream(message.call_id)


def make_failure(message: Failed) -> Exception:
    if message.kind == Unservable.__name__:
        return Unservable(message.message, message.param)
    return FAILURES[message.kind](message.message)


@dataclass(frozen=True, slots=True)
class Streaming:
    """A generation that an engine works on."""

    stream: EventStream
    num_tokens: int
    """At most; how replicas are compared."""


class ReplicaSet:
    """Several engines as one: each part of a call goes to the replica with the fewest tokens waiting."""

    def __init__(self, engines: list[SocketEngine]) -> None:
        self.engines = engines

    def status(self) -> tuple[EngineStatus, ...]:
        return tuple(status for engine in self.engines for status in engine.status())

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        """See EngineClient."""
        parts = split_call(sequences, SPLIT_TOKENS if len(self.engines) > 1 else None)
        if len(parts) == 1:
            return await self.pick().run(sequences, deadline_s)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.pick_and_run(part, deadline_s)) for part in parts]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        answers = [task.result() for task in tasks]
        return Answer(
            np.concatenate([answer.values for answer in answers]),
            max(answer.queue_s for answer in answers),
            max(answer.engine_s for answer in answers),
        )

    def generate(self, prompt: TokenArray, params: GenerationParams, deadline_s: float) -> GenerationStream:
        """See EngineClient."""
        return self.pick().generate(prompt, params, deadline_s)

    async def pick_and_run(self, part: list[TokenSequence], deadline_s: float) -> Answer:
        return await self.pick().run(part, deadline_s)

    def pick(self) -> EngineClient:
        ready = [engine for engine in self.engines if engine.status()[0].is_ready]
        if not ready:
            raise EngineUnavailable(f"no replica is ready: {self.engines[0].status()[0].reason}")
        return min(ready, key=lambda engine: engine.pending_tokens)

    async def close(self) -> None:
        for engine in self.engines:
            await engine.close()


def split_call(sequences: list[TokenSequence], max_tokens: int | None) -> list[list[TokenSequence]]:
    """Consecutive parts of at most `max_tokens` each, or of one longer sequence."""
    if max_tokens is None:
        return [sequences]
    parts: list[list[TokenSequence]] = []
    room = 0
    for sequence in sequences:
        if not parts or sequence.num_tokens > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(sequence)
        room -= sequence.num_tokens
    return parts
