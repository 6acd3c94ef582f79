"""An HTTP process that speaks gRPC on a port of its own. Takes the words that `http_process` takes.

Apart from it, because what most servers do not speak need not be imported by each of their processes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.http.app import App
from server.http.grpc_server import build_grpc_server, open_port
from server.processes.http_process import CUT_OFF_S, run_http


@asynccontextmanager
async def serve_grpc(app: App) -> AsyncIterator[None]:
    """Where the configuration has a port for it. Whoever is still served in the end is cut off: the drain is over."""
    http = app.state.config.server
    if http.grpc_port is None:
        yield
        return
    server = build_grpc_server(app)
    open_port(server, http)
    await server.start()
    try:
        yield
    finally:
        await server.stop(CUT_OFF_S)


if __name__ == "__main__":
    run_http(serve_grpc)
