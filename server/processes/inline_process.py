"""HTTP and engines in one process, for debugging. Takes the words that `http_process` takes."""

import asyncio
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import uvloop

from server.engine.executor import run_in_passing_thread
from server.metrics import Metrics
from server.processes.building import build_model
from server.processes.deployment import load
from server.processes.engine_process import build_loop
from server.processes.grpc_process import serve_grpc
from server.processes.http_process import build_state, connect, serve_http
from server.processes.startup import end_where_it_would_fail_again, set_up_logging
from server.wire.client import EngineClient


async def serve(run_dir: Path, listeners: Sequence[socket.socket]) -> None:
    """Models that are not `inline` keep their engine processes."""
    deployment, metrics = load(run_dir), Metrics()
    engines: list[EngineClient] = []
    for model in deployment.models:
        if model.config.engine.inline:
            loop = run_in_passing_thread(partial(build_loop, deployment, model, 0, metrics, build_model))
            await loop.start()
            engines.append(loop)
        else:
            engines.append(await connect(deployment, model))
    with ThreadPoolExecutor(deployment.config.server.tokenizer_threads, "tokenizer") as pool:
        await serve_http(build_state(deployment, 0, metrics, engines, pool), listeners, serve_grpc)
    for engine in engines:
        await engine.close()


def main() -> None:
    run_dir, _, *descriptors, _ = sys.argv[1:]
    set_up_logging(load(Path(run_dir)).config.server.log_level)
    with end_where_it_would_fail_again(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        listeners = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
        runner.run(serve(Path(run_dir), listeners))


if __name__ == "__main__":
    main()
