"""Has a precision chosen for every model that leaves it to measurement: by one process, before any engine is started.

Engines that measured for themselves measured one another: replicas of one model came to keep different tables, and
gave one text different vectors. What a process chooses here is told to all replicas, and to those started again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from runtime.config import Precision
from runtime.precision_cache import choice_path, read_choice
from runtime.precision_choice import ChosenPrecision
from server.config import ConfigError
from server.processes.child import HEARTBEAT_PATIENCE_S, Child
from server.processes.deployment import DeployedModel, Deployment
from server.processes.memory import estimate_trial, find_cpu_bytes
from server.processes.sample_texts import list_sample_texts
from server.processes.startup import CANNOT_START
from server.tasks.task import Work

logger = logging.getLogger("padless")

PATIENCE_S = 600.0
"""What reads, captures and times a model may take so long; its loop says sooner that it is stuck."""
EXACT: Precision = "fp32"


async def choose_precisions(deployment: Deployment, stopping: asyncio.Event) -> Deployment:
    """With what was chosen for each model, one after another while nothing else runs; as it is once `stopping`.

    Raises ConfigError where a model cannot be used at all.
    """
    models = []
    for model in deployment.models:
        if is_measured(model) and not stopping.is_set():
            model = replace(model, chosen=await choose(deployment, model, stopping))
        models.append(model)
    return replace(deployment, models=tuple(models))


def is_measured(model: DeployedModel) -> bool:
    """Generators take the float type that the device multiplies best, and a GPU has but one to choose from."""
    engine = model.config.engine
    is_planned = engine.kind == "planned" and engine.device == "cpu"
    return is_planned and engine.named_precision is None and model.task.work is Work.ENCODE


async def choose(deployment: Deployment, model: DeployedModel, stopping: asyncio.Event) -> ChosenPrecision:
    """What an earlier start has found, or what is found now; the exact precision where that fails.

    Raises ConfigError, ModelDirectoryError.
    """
    cache = await asyncio.to_thread(find_cache, model)
    known = read_choice(cache)
    if known is not None:
        return known
    needed, there = estimate_trial(model), find_cpu_bytes()
    if needed > there:
        problem = f"measuring takes {needed / 2**20:.0f} MB and there are {there / 2**20:.0f}"
    else:
        problem = await measure(deployment, model, cache, stopping)
    found = read_choice(deployment.choice_path(model))
    if found is not None:
        return found
    if not stopping.is_set():
        logger.warning("%s runs in %s, the exact precision, because %s", model.config.name, EXACT, problem)
    table = ((model.config.limits.max_batch_tokens, EXACT),)
    return ChosenPrecision(table, model.config.engine.accuracy, problem=problem)


def find_cache(model: DeployedModel) -> Path:
    limits = model.config.limits
    sizes = (limits.max_batch_tokens, limits.max_batch_requests, model.max_input_tokens)
    return choice_path(model.directory, model.config.engine, model.threads, sizes, model.info, list_sample_texts())


async def measure(deployment: Deployment, model: DeployedModel, cache: Path, stopping: asyncio.Event) -> str:
    """Let a process write what it finds to `deployment.choice_path(model)`. Returns how that went wrong if it did.

    Raises ConfigError where the process says that the model cannot be used.
    """
    hangs: list[Child] = []
    arguments = [str(deployment.run_dir), str(model.index), str(cache)]
    child = Child(f"precision {model.config.name}", "server.processes.precision_process", arguments)
    async with started(child, hangs) as ending:
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait([ending, stop], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not ending.done():
            return f"the process that measures had not ended after {PATIENCE_S:.0f} s"
    try:
        status = ending.result()
    except OSError as error:
        return f"the process that measures could not be started: {error.strerror}"
    if status == CANNOT_START:
        raise ConfigError(f"model {model.config.name} cannot be started; the reason is above")
    if hangs:
        return f"the process that measures said nothing for {HEARTBEAT_PATIENCE_S:.0f} s"
    return f"the process that measures ended with status {status}"


@asynccontextmanager
async def started(child: Child, hangs: list[Child]) -> AsyncIterator["asyncio.Task[int]"]:
    """Its run; at the end it runs no more, whatever it was doing."""
    ending = asyncio.create_task(child.run(hangs.append))
    try:
        yield ending
    finally:
        child.terminate()
        if child.process is not None and child.process.returncode is None:
            child.process.kill()
        with suppress(OSError):
            await ending
