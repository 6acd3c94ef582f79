"""An HTTP process: `... http_process RUN_DIR WORKER SOCKET_FD [ADMIN_SOCKET_FD] NUM_STARTS`.

Started by the supervisor. Several of them share the listening sockets, the engines, and the count of admitted requests.
"""

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from models.translation import read_translation
from server.audio.features import load_log_mel
from server.audio.hearing import Hearing
from server.audio.speech import find_speech
from server.config import HttpConfig
from server.http.admission import Admission
from server.http.app import ROUTES, App
from server.http.connection import bound_connections
from server.http.state import ServedModel, ServerState, add_heads
from server.metrics import Metrics
from server.processes.deployment import DeployedModel, Deployment, load
from server.processes.startup import (
    end_where_it_would_fail_again,
    set_up_logging,
    spare_garbage_collector,
    stay_with_parent,
)
from server.tasks.head import Work
from server.text.chat_template import load_chat_template
from server.text.judgement import build_judge
from server.text.languages import find_languages
from server.text.tokenizer import Tokenizer
from server.text.tokenizer_file import load_tokenizer
from server.wire.client import EngineClient, SocketClient
from server.wire.replica_set import ReplicaSet

logger = logging.getLogger("padless.http")

DRAIN_POLL_S = 0.02
CUT_OFF_S = 1.0
"""For telling those whose requests are cut off, after `drain_timeout_s`."""

ServeMore = Callable[[App], AbstractAsyncContextManager[None]]
"""Serves an application in another way as well, while it lasts."""


def build_state(
    deployment: Deployment, worker: int, metrics: Metrics, engines: list[EngineClient], pool: ThreadPoolExecutor
) -> ServerState:
    """What the application needs; `engines` in the order of the models."""
    models = {}
    for model, engine in zip(deployment.models, engines, strict=True):
        served = ServedModel(
            name=model.config.name,
            config=model.config,
            head=model.head,
            info=model.info,
            tokenizer=load_tokenizer(
                model.text_directory,
                lowercase=model.info.do_lower_case,
                is_required=model.head.work is not Work.DECODE,
                markers=() if model.info.late_interaction is None else model.info.late_interaction.markers,
                max_input_tokens=model.max_input_tokens,
                vocab_size=model.info.vocab_size,
                type_vocab_size=model.info.type_vocab_size,
                pool=pool,
                num_threads=deployment.config.server.tokenizer_threads,
                chat_template=load_chat_template(model.text_directory, model.config.chat.template),
            ),
            admission=Admission(
                model.config.limits.max_concurrent_requests,
                path=deployment.admission_path(model),
                worker=worker,
                num_workers=deployment.config.server.http_workers,
            ),
            engine=engine,
        )
        if model.hears:
            served = replace(served, hearing=build_hearing(model, served.tokenizer, deployment.config.server))
        elif model.head.work is Work.ENCODE_DECODE:
            languages = find_languages(model.info, read_translation(model.text_directory), served.tokenizer)
            served = replace(served, languages=languages)
        served = replace(served, judge=build_judge(model.info, served.tokenizer))
        models[model.config.name] = add_heads(served, [head.info for head in model.heads])
    return ServerState(deployment.config, models, metrics, deployment.keys)


def build_hearing(model: DeployedModel, tokenizer: Tokenizer, http: HttpConfig) -> Hearing:
    return Hearing(
        speech=find_speech(model.info, tokenizer.texts),
        log_mel=load_log_mel(model.text_directory),
        max_s=model.config.limits.max_audio_s,
        pool=ThreadPoolExecutor(http.tokenizer_threads, "hearing"),
        turns=asyncio.Semaphore(http.tokenizer_threads),
    )


async def connect(deployment: Deployment, model: DeployedModel) -> ReplicaSet:
    sockets = [SocketClient(deployment.socket_path(model, replica)) for replica in range(model.config.engine.replicas)]
    for engine in sockets:
        await engine.start()
    return ReplicaSet(sockets)


class HttpServer(uvicorn.Server):
    """uvicorn's, which leaves signals alone: it would stop listening before readiness turns off."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build_server(app: App, **options: Any) -> HttpServer:
    """`options` are uvicorn's own."""
    return HttpServer(
        uvicorn.Config(
            app,
            http=bound_connections(app.state.config.server),
            ws="none",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            timeout_keep_alive=app.state.config.server.idle_timeout_s,
            server_header=False,
            **options,
        )
    )


def build_public_app(state: ServerState, *, has_admin: bool) -> App:
    """Without the routes that another one serves."""
    return App(state, [route for route in ROUTES if not (has_admin and route.is_admin)])


def build_public_server(app: App) -> HttpServer:
    http = app.state.config.server
    password = http.ssl_keyfile_password
    return build_server(
        app,
        timeout_graceful_shutdown=max(1, round(http.drain_timeout_s)),
        ssl_certfile=http.ssl_certfile,
        ssl_keyfile=http.ssl_keyfile,
        ssl_keyfile_password=None if password is None else password.get_secret_value(),
    )


def build_admin_server(state: ServerState) -> HttpServer:
    """For whoever reaches its port: that is what it is for."""
    routes = [route for route in ROUTES if route.is_admin or route.is_open]
    return build_server(App(state, routes, needs_keys=False), timeout_graceful_shutdown=1, lifespan="off")


async def serve_http(state: ServerState, listeners: Sequence[socket.socket], serve_more: ServeMore) -> None:
    """Serve until SIGTERM: then readiness turns off, new calls are refused, and accepted ones finish. A second listener
    is the admin port's, which answers until the end."""
    public, *others = listeners
    app = build_public_app(state, has_admin=bool(others))
    server = build_public_server(app)
    admins = [build_admin_server(state) for _ in others]
    draining: list[asyncio.Task[None]] = []

    def begin_drain() -> None:
        if not draining:
            draining.append(asyncio.create_task(drain(state, server)))

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, begin_drain)
    heart = stay_with_parent(begin_drain)
    serving = [asyncio.create_task(admin.serve(sockets=[other])) for admin, other in zip(admins, others, strict=True)]
    async with serve_more(app):
        await server.serve(sockets=[public])
    for admin in admins:
        admin.should_exit = True
    await asyncio.gather(*serving)
    heart.cancel()


@asynccontextmanager
async def serve_nothing_more(app: App) -> AsyncIterator[None]:
    yield


async def drain(state: ServerState, server: uvicorn.Server) -> None:
    state.is_draining = True
    loop = asyncio.get_running_loop()
    until_s = loop.time() + state.config.server.drain_timeout_s
    await wait_for_answers(state, until_s)
    if count_inputs(state):
        logger.warning("%d requests are not finished after server.drain_timeout_s and are cut off", count_inputs(state))
        # Whoever still waits is told so, in the way of the protocol, while there is somebody to tell it.
        for model in state.models.values():
            await model.engine.close()
        await wait_for_answers(state, loop.time() + CUT_OFF_S)
        until_s = loop.time() + CUT_OFF_S
    # Answers still being written share what is left of the time.
    server.config.timeout_graceful_shutdown = max(1, round(until_s - loop.time()))
    server.should_exit = True


def count_inputs(state: ServerState) -> int:
    """Of all models, in this process."""
    return sum(model.admission.own_inputs for model in state.models.values())


async def wait_for_answers(state: ServerState, until_s: float) -> None:
    """Until all are given, or that time of the event loop."""
    loop = asyncio.get_running_loop()
    while count_inputs(state) and loop.time() < until_s:
        await asyncio.sleep(DRAIN_POLL_S)


async def serve(run_dir: Path, worker: int, listeners: Sequence[socket.socket], serve_more: ServeMore) -> None:
    deployment = load(run_dir)
    engines: list[EngineClient] = [await connect(deployment, model) for model in deployment.models]
    with ThreadPoolExecutor(deployment.config.server.tokenizer_threads, "tokenizer") as pool:
        state = build_state(deployment, worker, Metrics(), engines, pool)
        spare_garbage_collector()
        await serve_http(state, listeners, serve_more)
    for model in state.models.values():
        model.admission.close()
        if model.hearing is not None:
            model.hearing.pool.shutdown(wait=False, cancel_futures=True)
    for engine in engines:
        await engine.close()


def raise_file_limit() -> None:
    """As far as one may: each connection is an open file, and many systems begin with 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_http(serve_more: ServeMore) -> None:
    run_dir, worker, *descriptors, _ = sys.argv[1:]
    set_up_logging(load(Path(run_dir)).config.server.log_level)
    raise_file_limit()
    listeners = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
    with end_where_it_would_fail_again(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Path(run_dir), int(worker), listeners, serve_more))


if __name__ == "__main__":
    run_http(serve_nothing_more)
