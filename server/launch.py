"""The supervisor: settles what to run, starts engine and HTTP processes, starts dead ones again, and ends in order.

It computes nothing and imports no torch. Engines and HTTP workers find one another by the sockets of the run directory.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from runtime.engine import EngineInfo
from server.admission import clear_slot
from server.config import ConfigError, ServerConfig
from server.deployment import DeployedModel, Deployment, resolve, save
from server.engine_client import SocketEngine
from server.metrics import METRICS_DIR_VARIABLE, forget_process
from server.processes import set_up_logging

logger = logging.getLogger("padless")

RESTART_PAUSE_S = 0.5
FIRST_FAILURES = 3
"""An engine that dies this often before it was ever ready will not get better by trying again."""
KILL_AFTER_S = 5.0


@dataclass(slots=True)
class Child:
    """A process the supervisor keeps alive; its last argument is how often it has been started.

    Mutable: `process`, the current incarnation, and `num_starts`.
    """

    name: str
    command: list[str]
    pass_fds: tuple[int, ...] = ()
    worker: int | None = None
    """For HTTP workers: their slot in the admission files."""
    process: asyncio.subprocess.Process | None = None
    num_starts: int = 0


class Supervisor:
    """Mutable: the children, and whether they are being stopped."""

    def __init__(self, deployment: Deployment, listener: socket.socket) -> None:
        self.deployment = deployment
        self.listener = listener
        self.engines = [
            Child(
                f"engine {model.config.name}/{replica}",
                [
                    sys.executable,
                    "-m",
                    "server.engine_process",
                    str(deployment.run_dir),
                    str(model.index),
                    str(replica),
                ],
            )
            for model in deployment.models
            if not model.config.engine.inline
            for replica in range(model.config.engine.replicas)
        ]
        self.workers = list(self.list_workers())
        self.was_ready = False
        self.stopping = asyncio.Event()
        self.failure = ""

    def list_workers(self) -> Iterator[Child]:
        is_inline = any(model.config.engine.inline for model in self.deployment.models)
        module = "server.inline_worker" if is_inline else "server.http_worker"
        descriptor = self.listener.fileno()
        for worker in range(self.deployment.config.server.http_workers):
            command = [sys.executable, "-m", module, str(self.deployment.run_dir), str(worker), str(descriptor)]
            yield Child(f"http {worker}", command, (descriptor,), worker)

    async def run(self) -> int:
        """Keep all children running until SIGTERM or SIGINT. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self.stopping.set)
        keepers = [asyncio.create_task(self.keep(child)) for child in (*self.engines, *self.workers)]
        announcer = asyncio.create_task(self.announce())
        await self.stopping.wait()
        announcer.cancel()
        await self.stop(self.workers, self.deployment.config.server.drain_timeout_s + KILL_AFTER_S)
        await self.stop(self.engines, KILL_AFTER_S)
        await asyncio.gather(*keepers)
        if self.failure:
            logger.error("%s", self.failure)
        return 1 if self.failure else 0

    async def keep(self, child: Child) -> None:
        """Start, wait for the end, tidy up, again."""
        while not self.stopping.is_set():
            child.num_starts += 1
            # Its standard input stays open as long as we live: that is how it notices should we be killed.
            command = [*child.command, str(child.num_starts)]
            process = child.process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, pass_fds=child.pass_fds, process_group=0
            )
            status = await process.wait()
            forget_process(process.pid)
            if child.worker is not None:
                for model in self.deployment.models:
                    clear_slot(self.deployment.admission_path(model), child.worker)
            if self.stopping.is_set():
                return
            if not self.was_ready and child.num_starts >= FIRST_FAILURES:
                self.failure = f"{child.name} ended {child.num_starts} times before it was ready; see its error above"
                self.stopping.set()
                return
            logger.error("%s ended with status %s; starting it again", child.name, status)
            await asyncio.sleep(RESTART_PAUSE_S)

    async def stop(self, children: list[Child], patience_s: float) -> None:
        """SIGTERM, then SIGKILL for those that do not end in time."""
        running = [
            child.process for child in children if child.process is not None and child.process.returncode is None
        ]
        for process in running:
            process.terminate()
        if not running:
            return
        _, pending = await asyncio.wait(
            [asyncio.create_task(process.wait()) for process in running], timeout=patience_s
        )
        if pending:
            logger.error("%d processes did not end within %.0f s; killed", len(pending), patience_s)
            for process in running:
                if process.returncode is None:
                    process.kill()

    async def announce(self) -> None:
        """Once every engine is ready: say what runs, and how to talk to it."""
        started_s = monotonic()
        for model in self.deployment.models:
            engine = SocketEngine(self.deployment.socket_path(model, 0))
            if model.config.engine.inline:
                continue
            await engine.start()
            while not engine.last.is_ready:
                await asyncio.sleep(0.05)
            info = engine.last.info
            await engine.close()
            assert info is not None, "A ready engine has said what it is. This is a bug."
            print(describe_model(model, info), flush=True)
        self.was_ready = True
        print(describe_access(self.deployment, self.listener, monotonic() - started_s), flush=True)


def describe_model(model: DeployedModel, info: EngineInfo) -> str:
    weights, activations = info.weight_bytes / 2**20, info.activation_bytes / 2**20
    replicas = model.config.engine.replicas
    unplanned = f"; ops that allocate for themselves: {', '.join(info.unplanned_ops)}" if info.unplanned_ops else ""
    return "\n".join(
        [
            f"{model.config.name}: {model.info.architecture}, {model.info.task}, from {model.directory}",
            f"  engine     {info.kind}, {info.precision} ({info.precision_reason}), on {info.device}, "
            f"{replicas} replica{'s' * (replicas > 1)} with {info.threads} thread{'s' * (info.threads > 1)}",
            f"  memory     weights {weights:.1f} MB + activations {activations:.1f} MB at the largest batch "
            f"({info.max_batch_tokens} tokens) = {weights + activations:.1f} MB per replica{unplanned}",
            f"  inputs     up to {model.max_input_tokens} tokens, {model.info.output_dim} numbers out",
        ]
    )


def describe_access(deployment: Deployment, listener: socket.socket, seconds: float) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    model = deployment.models[0]
    if model.info.task == "embed":
        route, body = (
            "/v1/embeddings",
            f'{{"model": "{model.config.name}", "input": "Hello, world", "encoding_format": "float"}}',
        )
    else:
        route, body = "/predict", '{"inputs": "Hello, world"}'
    return (
        f"Ready after {seconds:.1f} s on http://{host}:{port} (docs at /docs, metrics at /metrics). Try:\n"
        f"  curl http://{host}:{port}{route} -H 'content-type: application/json' -d '{body}'"
    )


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"server.host {host}, server.port {port}: {error.strerror}. Choose another port, or stop who has it"
        ) from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def launch(config: ServerConfig) -> int:
    """Serve until told to stop. Raises ConfigError, ModelDirectoryError before anything is started."""
    set_up_logging(config.server.log_level)
    listener = listen(config.server.host, config.server.port)
    run_dir = Path(tempfile.mkdtemp(prefix="padless-"))
    try:
        deployment = resolve(config, run_dir)
        deployment.metrics_dir.mkdir()
        # Inherited by all children, which is when it counts: prometheus_client reads it as it is imported.
        os.environ[METRICS_DIR_VARIABLE] = str(deployment.metrics_dir)
        save(deployment)
        for model in deployment.models:
            deployment.admission_path(model).touch()
            print(f"{model.config.name}: loading {model.info.architecture} from {model.directory}", flush=True)
        return asyncio.run(run_supervisor(deployment, listener))
    finally:
        listener.close()
        shutil.rmtree(run_dir, ignore_errors=True)


async def run_supervisor(deployment: Deployment, listener: socket.socket) -> int:
    return await Supervisor(deployment, listener).run()
