"""gRPC's server in front of the application: an RPC, or a message of a stream of them, is a call of `App`.

The ASGI scope of a call has the method's path and the client's metadata as headers; its time left is the header that
clients of HTTP would send. What comes back with a status other than 200 ends the RPC (`rpc.render_status`).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import orjson
from starlette.types import Message, Scope

from server.config import HttpConfig
from server.errors import Kind, Unauthenticated
from server.http.api import grpc_health, oip_rpc, tei_rpc
from server.http.api.statuses import find_status
from server.http.app import App
from server.http.deadline import MAX_TIMEOUT_MS, TIMEOUT_HEADER
from server.http.rpc import Rpc, join_messages

RPCS = (*oip_rpc.RPCS, *tei_rpc.RPCS, *grpc_health.RPCS)
Metadata = tuple[tuple[str, str], ...]
STREAM_WINDOW = 64
"""Messages of one stream that are computed at one time."""
WATCH_PERIOD_S = 0.5
"""So late clients hear of what they watch."""
OVERLOADED_STATUS = find_status(Kind.OVERLOADED)
MAX_STREAMS = 1024
"""RPCs of one connection at one time."""
LEAST_TIMEOUT_MS = 0.001
OWN_HEADERS = (b"content-type", b"content-length")
"""Of an answer, that are HTTP's."""
RETRY_HEADER, PUSHBACK = b"retry-after-ms", "grpc-retry-pushback-ms"
"""The latter is how gRPC's clients are told when to come back (gRFC A6)."""


class Exchange:
    """The application's `receive` and `send` for one message. Mutable: what has come of it."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._ended = asyncio.Event()
        self.status = 0
        self.metadata: Metadata = ()
        self.answer = b""

    async def receive(self) -> Message:
        if self._body is None:
            await self._ended.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.metadata = message["status"], list_metadata(message["headers"])
        else:
            self.answer = message["body"]

    def end(self) -> None:
        self._ended.set()

    def read_problem(self) -> dict[str, str]:
        """Where the status is another than 200."""
        problem: dict[str, str] = orjson.loads(self.answer)
        return problem


class Front:
    """The methods `rpcs` as gRPC's handlers."""

    def __init__(self, app: App, rpcs: Sequence[Rpc]) -> None:
        self.app = app
        self.rpcs = {rpc.route.path: rpc for rpc in rpcs}

    def list_handlers(self) -> list[grpc.GenericRpcHandler]:
        """By service. Messages are bytes for them."""
        services: dict[str, dict[str, Any]] = {}
        for path, rpc in self.rpcs.items():
            _, service, method = path.split("/")
            services.setdefault(service, {})[method] = self.build_handler(rpc)
        return [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]

    def build_handler(self, rpc: Rpc) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer_one(request: bytes, context: Any) -> bytes:
            return await finish(await self.call(rpc, request, context), context)

        async def answer_all(requests: AsyncIterator[bytes], context: Any) -> bytes:
            body = join_messages(await collect(requests, self.app.state.config.server))
            return await finish(await self.call(rpc, body, context), context)

        async def answer_each(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async with aclosing(self.call_each(rpc, requests, context)) as exchanges:
                async for request, exchange in exchanges:
                    if rpc.tell_error is not None and exchange.status != 200:
                        yield rpc.tell_error(request, exchange.read_problem()["message"])
                    else:
                        yield await finish(exchange, context)

        async def answer_changes(request: bytes, context: Any) -> AsyncIterator[bytes]:
            assert rpc.watch is not None
            while True:
                seen = rpc.watch(self.app.state)
                yield await finish(await self.call(rpc, request, context), context)
                while rpc.watch(self.app.state) == seen:
                    await asyncio.sleep(WATCH_PERIOD_S)

        if rpc.watch is not None:
            return grpc.unary_stream_rpc_method_handler(answer_changes)
        if rpc.streams == "none":
            return grpc.unary_unary_rpc_method_handler(answer_one)
        if rpc.streams == "all":
            return grpc.stream_unary_rpc_method_handler(answer_all)
        return grpc.stream_stream_rpc_method_handler(answer_each)

    async def call(self, rpc: Rpc, body: bytes, context: Any) -> Exchange:
        exchange = Exchange(body)
        try:
            await self.app(build_scope(rpc, context), exchange.receive, exchange.send)
        finally:
            exchange.end()
        return exchange

    async def call_each(
        self, rpc: Rpc, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[tuple[bytes, Exchange]]:
        """In the order of the requests, some of which are always under way. One that finds no place asks again when
        another one of the stream has ended; without others under way its refusal is the answer."""
        calls: asyncio.Queue[tuple[bytes, asyncio.Task[Exchange]] | None] = asyncio.Queue(STREAM_WINDOW)
        places = asyncio.Semaphore(self.count_places(build_scope(rpc, context)))
        running: set[asyncio.Task[Exchange]] = set()

        def end(task: "asyncio.Task[Exchange]") -> None:
            running.discard(task)
            places.release()

        async def read() -> None:
            async for request in requests:
                await places.acquire()
                task = asyncio.create_task(self.call(rpc, request, context))
                running.add(task)
                task.add_done_callback(end)
                await calls.put((request, task))
            await calls.put(None)

        reading = asyncio.create_task(read())
        try:
            while (started := await calls.get()) is not None:
                request, task = started
                exchange = await task
                while exchange.status == OVERLOADED_STATUS and running:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    exchange = await self.call(rpc, request, context)
                yield request, exchange
            await reading
        finally:
            await cancel({reading, *running})

    def count_places(self, scope: Scope) -> int:
        """Of messages of a stream that may be under way: no more than the key allows, for it would refuse the rest."""
        try:
            key = self.app.keyring.identify(scope["headers"])
        except Unauthenticated:  # which the first message is told
            return 1
        return min(key.max_calls or STREAM_WINDOW, STREAM_WINDOW)


async def cancel(tasks: set["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def collect(requests: AsyncIterator[bytes], http: HttpConfig) -> list[bytes]:
    """No more than a body may hold: what is beyond is told by the application, which sees that there is more."""
    found, num_bytes = [], 0
    async for request in requests:
        found.append(request)
        num_bytes += len(request)
        if num_bytes > http.max_body_mb * 1e6:
            break
    return found


async def finish(exchange: Exchange, context: Any) -> bytes:
    """The answer; or the RPC ends with its status."""
    if exchange.status == 200:
        context.set_trailing_metadata(exchange.metadata)
        return exchange.answer
    problem = exchange.read_problem()
    await context.abort(grpc.StatusCode[problem["code"]], problem["message"], exchange.metadata)
    raise AssertionError("An RPC that was aborted goes on. This is a bug.")


def build_scope(rpc: Rpc, context: Any) -> Scope:
    headers = [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in context.invocation_metadata() or ()
    ]
    left_s = context.time_remaining()
    if left_s is not None:
        left_ms = min(max(left_s * 1000, LEAST_TIMEOUT_MS), MAX_TIMEOUT_MS)
        headers.insert(0, (TIMEOUT_HEADER, b"%.3f" % left_ms))  # the first one counts
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": rpc.route.method,
        "scheme": "grpc",
        "path": rpc.route.path,
        "raw_path": rpc.route.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": (context.peer(), 0),
        "server": None,
    }


def list_metadata(headers: Sequence[tuple[bytes, bytes]]) -> Metadata:
    """Of an answer: the request's id, and when to come back."""
    found = [(name.decode(), value.decode("latin-1")) for name, value in headers if name not in OWN_HEADERS]
    return (*found, *((PUSHBACK, value.decode()) for name, value in headers if name == RETRY_HEADER))


def build_grpc_server(app: App, rpcs: Sequence[Rpc] = RPCS) -> Any:
    """A `grpc.aio.Server`, which is still to be given a port and started. Its limits are those of HTTP: messages may be
    as large as bodies, decompressed."""
    http = app.state.config.server
    server = grpc.aio.server(
        maximum_concurrent_rpcs=http.max_connections,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", int(http.max_body_mb * 1e6)),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            ("grpc.max_connection_idle_ms", http.idle_timeout_s * 1000),
        ],
    )
    twin = App(app.state, [rpc.route for rpc in rpcs], peer=app)
    server.add_generic_rpc_handlers(Front(twin, rpcs).list_handlers())
    return server


def open_port(server: Any, http: HttpConfig) -> int:
    """All HTTP processes listen at the port, and the kernel deals connections out to them (SO_REUSEPORT). Raises
    RuntimeError where it cannot be had."""
    address = f"[{http.host}]:{http.grpc_port}" if ":" in http.host else f"{http.host}:{http.grpc_port}"
    if http.ssl_certfile is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, load_credentials(http.ssl_certfile, http.ssl_keyfile))
    return int(port)


def load_credentials(certfile: str, keyfile: str | None) -> grpc.ServerCredentials:
    with open(certfile, "rb") as cert, open(keyfile or certfile, "rb") as key:
        return grpc.ssl_server_credentials([(key.read(), cert.read())])
