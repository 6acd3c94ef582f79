"""gRPC's own client on a loopback port of a server's application. Messages are bytes."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from conftest import Server

from server.http.grpc_server import build_grpc_server, open_port
from server.http.protobuf import Message, MessageReader, Parsed, write

INFER = "/inference.GRPCInferenceService/ModelInfer"
Metadata = tuple[tuple[str, str], ...]


class GrpcClient:
    """`ask` gives the answer as a message of ours; errors are grpc.aio.AioRpcError."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def start(self, path: str, message: Message | bytes = b"", **options: Any) -> Any:
        """An RPC under way."""
        return self.channel.unary_unary(path)(to_bytes(message), **options)

    async def ask(self, path: str, message: Message | bytes, reply: type[Parsed], **options: Any) -> Parsed:
        return parse(reply, await self.start(path, message, **options))

    async def ask_each(
        self, path: str, messages: Iterable[Message], reply: type[Parsed], **options: Any
    ) -> list[Parsed]:
        call = self.channel.stream_stream(path)(map(to_bytes, messages), **options)
        return [parse(reply, found) async for found in call]

    async def ask_all(self, path: str, messages: Iterable[Message], reply: type[Parsed], **options: Any) -> Parsed:
        return parse(reply, await self.channel.stream_unary(path)(map(to_bytes, messages), **options))


def to_bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else write(message)


def parse(reply: type[Parsed], raw: bytes) -> Parsed:
    return MessageReader(1_000_000).read(reply, raw)


@asynccontextmanager
async def open_grpc(server: Server) -> AsyncIterator[GrpcClient]:
    front = build_grpc_server(server.app)
    http = server.state.config.server.model_copy(update={"grpc_port": 0})
    port = open_port(front, http)
    await front.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield GrpcClient(channel)
    finally:
        await front.stop(0)
