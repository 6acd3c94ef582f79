"""The supervisor: settles what to run, starts engine and HTTP processes, starts dead ones again, and ends in order.

It computes nothing and imports no torch. Engines and HTTP workers find one another by the sockets of the run directory.
"""

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic

import msgspec

from models.info import ModelDirectoryError
from runtime.engine import EngineInfo
from server.api_keys import KEY_VARIABLE, KeyConfig, hash_key
from server.config import ConfigError, ServerConfig
from server.http.admission import clear_slot
from server.metrics import METRICS_DIR_VARIABLE, forget_process
from server.processes.announcement import describe_access, describe_model
from server.processes.child import HEARTBEAT_PATIENCE_S, Child
from server.processes.compiling import compile_models
from server.processes.deployment import Deployment, save
from server.processes.listeners import Listeners, fetch, open_listeners
from server.processes.memory import divide_memory
from server.processes.resolution import resolve
from server.processes.run_dir import keep_fresh, make_run_dir
from server.processes.startup import CANNOT_START, START_ANEW, set_up_logging
from server.processes.visible_devices import show_device
from server.text.tokenizer import ENVIRONMENT as TOKENIZER_ENVIRONMENT

logger = logging.getLogger("padless")

OPENING, BUILDING = "server.processes.engine_process", "server.processes.building_process"
RESTART_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
STEADY_S = 10.0
"""A child that lived longer has not crashed at its start."""
FIRST_FAILURES = 3
"""An engine that dies this often before it was ever ready will not get better by trying again."""
IMPORT_PATIENCE_S = 10.0
"""The next child starts all the same."""
KILL_AFTER_S = 5.0
KEEP_FILES_PERIOD_S = 3600.0
SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", "2000"
"""How long the threads of torch's kernels turn in circles before they sleep while they wait for one another, a few
microseconds; ours have their own number (docs/decisions/0031). OpenMP's default is milliseconds, in which a thread that
waits keeps a core from the one it waits for: with a busy process beside the engine a step of 2 ms took 600
(docs/decisions/0014)."""


class Supervisor:
    """Mutable: the children, who keeps them running, and whether they are being stopped."""

    def __init__(self, deployment: Deployment, listeners: Listeners, own_key: str) -> None:
        self.deployment = deployment
        self.listeners = listeners
        self.own_key = own_key
        self.settled = asyncio.Event()
        self.engines = [
            Child(
                f"engine {model.config.name}/{replica}",
                OPENING,
                [str(deployment.run_dir), str(model.index), str(replica)],
                model=model.index,
                variables=show_device(model.config.engine, replica, os.environ),
                settled=self.settled,
            )
            for model in deployment.models
            if not model.config.engine.inline
            for replica in range(model.config.engine.replicas)
        ]
        self.workers = list(self.list_workers())
        self.keepers: dict[str, asyncio.Task[None]] = {}
        self.was_ready = False
        self.stopping = asyncio.Event()
        self.failure = ""
        self.started_s = monotonic()

    @property
    def is_inline(self) -> bool:
        """Whether the only HTTP process computes as well."""
        return any(model.config.engine.inline for model in self.deployment.models)

    def list_workers(self) -> Iterator[Child]:
        name = "inline" if self.is_inline else "http" if self.deployment.config.server.grpc_port is None else "grpc"
        module = f"server.processes.{name}_process"
        descriptors = self.listeners.descriptors
        for worker in range(self.deployment.config.server.http_workers):
            arguments = [str(self.deployment.run_dir), *map(str, (worker, *descriptors))]
            yield Child(f"http {worker}", module, arguments, descriptors, worker)

    async def run(self) -> int:
        """Keep all children running until SIGTERM or SIGINT. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self.stopping.set)
        num_cores = self.deployment.num_cores
        # While models are compiled HTTP processes start, which answer that nothing is ready yet, and engines, which
        # import for seconds and then wait for their model. Who computes at once starts when nothing is timed.
        early = () if self.is_inline else (*self.workers, *filter(self.opens, self.engines))
        tasks = [asyncio.create_task(self.start_in_turn(early, max(1, num_cores - 1)))]
        await self.compile_models()
        tasks[0].cancel()
        tasks.append(asyncio.create_task(self.start_in_turn((*self.workers, *self.engines), num_cores)))
        tasks += [asyncio.create_task(self.announce()), asyncio.create_task(self.keep_files())]
        await self.stopping.wait()
        for task in tasks:
            task.cancel()
        patience_s = self.deployment.config.server.drain_timeout_s + KILL_AFTER_S
        has_drained = await self.stop(self.workers, patience_s)
        self.listeners.close()  # nobody is left to answer: who comes now is refused at once, instead of waiting in vain
        await self.stop(self.engines, KILL_AFTER_S)
        await asyncio.gather(*self.keepers.values(), *tasks, return_exceptions=True)
        if self.failure:
            logger.error("%s", self.failure)
        return 0 if has_drained and not self.failure else 1

    async def start_in_turn(self, children: Sequence[Child], num_at_once: int) -> None:
        """Those that were not yet. So many import at a time, which takes a core for seconds: the first of them are
        ready sooner than if all did, and the last no later."""
        free = asyncio.Semaphore(num_at_once)

        async def wait_for(child: Child) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(child.heard.wait(), IMPORT_PATIENCE_S)
            free.release()

        async with asyncio.TaskGroup() as imports:
            for child in children:
                if child.name not in self.keepers:
                    await free.acquire()
                    self.keepers[child.name] = asyncio.create_task(self.keep(child))
                    imports.create_task(wait_for(child))

    async def compile_models(self) -> None:
        """Before any engine computes: what is timed is to be alone."""
        try:
            self.deployment = await compile_models(self.deployment, self.stopping)
            save(self.deployment)
            self.settled.set()
        except (ConfigError, ModelDirectoryError) as error:
            self.failure = str(error)
            self.stopping.set()

    async def keep(self, child: Child) -> None:
        """Start, wait for the end, tidy up, again; more and more slowly if it ends at once each time."""
        pause_s = RESTART_PAUSE_S
        while not self.stopping.is_set():
            started_s = monotonic()
            status: int | None = None
            try:
                status = await self.run_child(child)
            except OSError:
                logger.exception("%s could not be started", child.name)
            if self.stopping.is_set():
                return
            if not self.was_ready and (status == CANNOT_START or child.num_starts >= FIRST_FAILURES):
                self.failure = f"{child.name} cannot be started; the reason is above"
                self.stopping.set()
                return
            if status == START_ANEW:
                child.num_starts -= 1
                continue
            logger.error("%s ended with status %s; starting it again", child.name, status)
            pause_s = RESTART_PAUSE_S if monotonic() - started_s > STEADY_S else min(2 * pause_s, MAX_PAUSE_S)
            await asyncio.wait([asyncio.create_task(self.stopping.wait())], timeout=pause_s)

    async def run_child(self, child: Child) -> int:
        """One incarnation, from its start to its end; what it leaves behind is tidied up. Raises OSError."""
        if child.model is not None:
            child.module = OPENING if self.opens(child) else BUILDING
        status = await child.run(self.note_hang)
        assert child.process is not None
        forget_process(child.process.pid)
        if child.worker is not None:
            for model in self.deployment.models:
                clear_slot(self.deployment.admission_path(model), child.worker)
        return status

    def opens(self, engine: Child) -> bool:
        """Whether it has, or while models are compiled will have, something to open. That needs neither the exporter
        nor the models' code."""
        assert engine.model is not None
        model = self.deployment.models[engine.model]
        return model.is_openable or (model.is_compiled and not self.settled.is_set())

    def note_hang(self, child: Child) -> None:
        logger.error("%s has said nothing for %.0f s; it is killed", child.name, HEARTBEAT_PATIENCE_S)

    async def stop(self, children: list[Child], patience_s: float) -> bool:
        """SIGTERM, then SIGKILL for those that do not end in time. Returns whether all ended by themselves."""
        running = [each.process for each in children if each.process is not None and each.process.returncode is None]
        for child in children:
            child.terminate()
        if not running:
            return True
        ends = [asyncio.create_task(process.wait()) for process in running]
        _, pending = await asyncio.wait(ends, timeout=patience_s)
        if pending:
            logger.error("%d processes did not end within %.0f s; killed", len(pending), patience_s)
            for process in running:
                if process.returncode is None:
                    process.kill()
        return not pending

    async def keep_files(self) -> None:
        """Until the end: cleaners of temporary files take what has not been touched for days."""
        while not self.stopping.is_set():
            keep_fresh(self.deployment.run_dir)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), KEEP_FILES_PERIOD_S)

    async def announce(self) -> None:
        """Once every replica of every model is ready: say what runs, and how to talk to it."""
        admin_url = self.listeners.admin_url
        while await asyncio.to_thread(fetch, f"{admin_url}/ready") is None:
            await asyncio.sleep(0.1)
        self.was_ready = True
        for model, info in zip(self.deployment.models, await self.find_infos(), strict=False):
            print(describe_model(model, info), flush=True)
        url = self.listeners.public_url
        print(describe_access(self.deployment, url, admin_url, monotonic() - self.started_s), flush=True)

    async def find_infos(self) -> list[EngineInfo]:
        """Of each model's first replica; none where nobody says. Another HTTP process may answer than the one that is
        ready, and may yet have to hear of its engines."""
        while True:
            body = await asyncio.to_thread(fetch, f"{self.listeners.admin_url}/info", self.own_key)
            answer = msgspec.json.decode(body or b"{}")
            infos = [found["replicas"][0]["info"] for found in answer.get("models", ())]
            if None not in infos:
                return [msgspec.convert(info, EngineInfo) for info in infos]
            await asyncio.sleep(0.1)


def launch(config: ServerConfig) -> int:
    """Serve until told to stop. Raises ConfigError, ModelDirectoryError before anything is started."""
    set_up_logging(config.server.log_level)
    listeners = open_listeners(config.server)
    try:
        with make_run_dir() as run_dir:
            config = config.model_copy(update={"server": listeners.settle(config.server)})
            deployment, own_key = add_own_key(divide_memory(resolve(config, run_dir)))
            deployment.metrics_dir.mkdir()
            set_environment(deployment)
            save(deployment)
            for model in deployment.models:
                deployment.admission_path(model).touch()
                print(f"{model.config.name}: loading {model.info.architecture} from {model.directory}", flush=True)
            return asyncio.run(run_supervisor(deployment, listeners, own_key))
    finally:
        listeners.close()


def add_own_key(deployment: Deployment) -> tuple[Deployment, str]:
    """Where keys are needed the supervisor makes one for itself, which ends with it. Empty where none is."""
    if not deployment.keys:
        return deployment, ""
    secret = secrets.token_urlsafe(32)
    own = KeyConfig(name="supervisor", hash=hash_key(secret), admin=True)
    return replace(deployment, keys=(*deployment.keys, own)), secret


def set_environment(deployment: Deployment) -> None:
    """What all children inherit, which is when it counts: libraries read these variables as they are imported."""
    os.environ[METRICS_DIR_VARIABLE] = str(deployment.metrics_dir)
    os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)
    os.environ.update(TOKENIZER_ENVIRONMENT)
    os.environ.pop(KEY_VARIABLE, None)  # children know its hash


async def run_supervisor(deployment: Deployment, listeners: Listeners, own_key: str) -> int:
    return await Supervisor(deployment, listeners, own_key).run()
