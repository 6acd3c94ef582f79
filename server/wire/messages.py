"""The messages between an HTTP process and an engine process, and their framing on a Unix socket.

MessagePack by msgspec, each message behind its length in 4 bytes. A stream socket rather than a message queue, because
its end tells at once, on both sides, that the other process is gone (docs/decisions/0002).
"""

import asyncio
import struct

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.engine import EngineInfo
from server.wire.job import GenerationEvent, GenerationParams, TokenArray, TokenSequence

LENGTH = struct.Struct("<I")


class Submit(msgspec.Struct, tag=True, array_like=True):
    """One client call, int32 arrays as bytes. `seqlens` cuts `input_ids`; `token_type_ids` may be empty."""

    call_id: int
    deadline_s: float
    seqlens: bytes
    input_ids: bytes
    token_type_ids: bytes


class Generate(msgspec.Struct, tag=True, array_like=True):
    """One prompt, int32 as bytes."""

    call_id: int
    deadline_s: float
    input_ids: bytes
    params: GenerationParams


class Stop(msgspec.Struct, tag=True, array_like=True):
    """No more of one answer."""

    call_id: int
    index: int


class Cancel(msgspec.Struct, tag=True, array_like=True):
    call_id: int


class Answered(msgspec.Struct, tag=True, array_like=True):
    """float32 rows as bytes."""

    call_id: int
    values: bytes
    queue_s: float
    engine_s: float


class News(msgspec.Struct, tag=True, array_like=True):
    """Of a generation, as often as there are any."""

    call_id: int
    events: list[GenerationEvent]


class Failed(msgspec.Struct, tag=True, array_like=True):
    """`kind` is the name of one of the exceptions of `server.wire.job`."""

    call_id: int
    kind: str
    message: str
    param: str | None = None


class Status(msgspec.Struct, tag=True, array_like=True):
    """Sent a few times a second, which also shows that the engine's loop turns."""

    is_ready: bool
    reason: str
    queued_tokens: int
    tokens_per_s: float
    info: EngineInfo | None


Message = Submit | Generate | Stop | Cancel | Answered | News | Failed | Status
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


def encode_call(call_id: int, sequences: list[TokenSequence], deadline_s: float) -> Submit:
    has_types = any(sequence.token_type_ids is not None for sequence in sequences)
    return Submit(
        call_id,
        deadline_s,
        np.array([sequence.num_tokens for sequence in sequences], np.int32).tobytes(),
        join([sequence.input_ids for sequence in sequences]),
        join([types_of(sequence) for sequence in sequences]) if has_types else b"",
    )


def decode_call(message: Submit) -> list[TokenSequence]:
    borders = np.cumsum(np.frombuffer(message.seqlens, np.int32))[:-1]
    input_ids = np.split(np.frombuffer(message.input_ids, np.int32), borders)
    if not message.token_type_ids:
        return [TokenSequence(ids) for ids in input_ids]
    types = np.split(np.frombuffer(message.token_type_ids, np.int32), borders)
    return [TokenSequence(ids, token_types) for ids, token_types in zip(input_ids, types, strict=True)]


def join(arrays: list[TokenArray]) -> bytes:
    return b"".join(np.ascontiguousarray(array, np.int32).tobytes() for array in arrays)


def types_of(sequence: TokenSequence) -> npt.NDArray[np.int32]:
    if sequence.token_type_ids is None:
        return np.zeros(sequence.num_tokens, np.int32)
    return sequence.token_type_ids
