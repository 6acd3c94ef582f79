"""The messages between an HTTP process and an engine process, and their framing on a Unix socket.

MessagePack by msgspec, each message behind its length in 4 bytes. A stream socket rather than a message queue, because
its end tells at once, on both sides, that the other process is gone (docs/decisions/0002).
"""

import asyncio
import struct
from typing import Any

import msgspec
import numpy as np

from runtime.engine import EngineInfo
from server.errors import ServiceError, make_error
from server.wire.job import Job, Ragged, Result

LENGTH = struct.Struct("<I")


class WireArray(msgspec.Struct, array_like=True):
    """A Ragged. `row_splits`: int32; empty where each row is one entry of `values`, which have this `shape`."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes
    row_splits: bytes


class Submit(msgspec.Struct, tag=True, array_like=True):
    """A job. `params` are its task's, as MessagePack."""

    job_id: int
    task: str
    inputs: dict[str, WireArray]
    timeout_s: float
    params: bytes
    outputs: dict[str, str]
    priority: int
    salt: str


class Cancel(msgspec.Struct, tag=True, array_like=True):
    """Nothing more of these rows is wanted; no rows: of none."""

    job_id: int
    rows: tuple[int, ...] = ()


class Failure(msgspec.Struct, array_like=True):
    """A `ServiceError`."""

    kind: str
    message: str
    param: str | None


class Results(msgspec.Struct, tag=True, array_like=True):
    """A result of a job, or why there are no more. `rows`: int32."""

    job_id: int
    rows: bytes
    arrays: dict[str, WireArray]
    is_last: bool
    queue_s: float = 0.0
    engine_s: float = 0.0
    failure: Failure | None = None


class Status(msgspec.Struct, tag=True, array_like=True):
    """Sent a few times a second, which also shows that the engine's loop turns."""

    is_ready: bool
    reason: str
    tokens_per_s: float
    info: EngineInfo | None


Message = Submit | Cancel | Results | Status
ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(Message)


def frame(message: Message) -> bytes:
    body = ENCODER.encode(message)
    return LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader) -> Message:
    """Raises asyncio.IncompleteReadError or ConnectionError when the other side is gone."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    message: Message = DECODER.decode(await reader.readexactly(length))
    return message


def write_job(job_id: int, job: Job) -> Submit:
    inputs = {name: write_array(array) for name, array in job.inputs.items()}
    params = ENCODER.encode(job.params)
    return Submit(job_id, job.task, inputs, job.timeout_s, params, dict(job.outputs), job.priority, job.salt)


def read_job(message: Submit, params: type) -> Job:
    """`params`: what the task's are. Raises msgspec.ValidationError."""
    return Job(
        task=message.task,
        inputs={name: read_array(array) for name, array in message.inputs.items()},
        timeout_s=message.timeout_s,
        params=msgspec.msgpack.decode(message.params, type=params),
        outputs=message.outputs,
        priority=message.priority,
        salt=message.salt,
    )


def write_result(job_id: int, result: Result) -> Results:
    arrays = {name: write_array(array) for name, array in result.arrays.items()}
    return Results(job_id, result.rows.tobytes(), arrays, result.is_last, result.queue_s, result.engine_s)


def write_failure(job_id: int, error: ServiceError) -> Results:
    return Results(job_id, b"", {}, is_last=True, failure=Failure(error.kind, error.message, error.param))


def read_result(message: Results) -> Result | ServiceError:
    failure = message.failure
    if failure is not None:
        return make_error(failure.kind, failure.message, failure.param)
    rows = np.frombuffer(message.rows, np.int32)
    arrays = {name: read_array(array) for name, array in message.arrays.items()}
    return Result(rows, arrays, message.is_last, message.queue_s, message.engine_s)


def write_array(array: Ragged) -> WireArray:
    values, splits = array.values, array.row_splits
    return WireArray(values.dtype.char, values.shape, values.tobytes(), b"" if splits is None else splits.tobytes())


def read_array(array: WireArray) -> Ragged:
    values: np.ndarray[Any, Any] = np.frombuffer(array.values, array.dtype)
    if len(array.shape) > 1:
        values = values.reshape(array.shape)
    return Ragged(values, np.frombuffer(array.row_splits, np.int32) if array.row_splits else None)
