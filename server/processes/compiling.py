"""Has every model compiled, and its precision chosen where that is left open: by one process, before any engine.

Engines that compiled for themselves each took the seconds and the memory of it, and those that measured measured one
another: replicas of one model came to keep different tables, and gave one text different vectors. What a process makes
here is mapped by all replicas, by those started again, and by later starts.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from runtime.compile_cache import CompileCache, find_cache, read_choice
from runtime.config import Precision
from runtime.precision_choice import ChosenPrecision
from server.config import ConfigError
from server.processes.child import HEARTBEAT_PATIENCE_S, Child
from server.processes.deployment import DeployedModel, Deployment
from server.processes.memory import estimate_trial, find_cpu_bytes
from server.processes.sample_texts import list_sample_texts
from server.processes.startup import CANNOT_START
from server.processes.visible_devices import show_device
from server.tasks.head import Work

logger = logging.getLogger("padless")

PATIENCE_S = 600.0
"""What reads, captures and times a model may take so long; its loop says sooner that it is stuck."""
EXACT: Precision = "fp32"
VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""Of glibc: larger pieces of memory go back to the system when they are let go of. By default they come to lie between
small ones that stay: a third more than a large model takes."""


async def compile_models(deployment: Deployment, stopping: asyncio.Event) -> Deployment:
    """With what each model was compiled to, one after another while nothing else computes; as it is once `stopping`.

    Raises ConfigError where a model cannot be used at all.
    """
    models = []
    for model in deployment.models:
        if model.is_compiled and not stopping.is_set():
            model = await find_compiled(deployment, model, stopping)
        models.append(model)
    return replace(deployment, models=tuple(models))


def is_measured(model: DeployedModel) -> bool:
    """Generators take the float type that the device multiplies best, and a GPU has but one to choose from."""
    engine = model.config.engine
    return engine.device == "cpu" and engine.named_precision is None and model.head.work is Work.ENCODE


async def find_compiled(deployment: Deployment, model: DeployedModel, stopping: asyncio.Event) -> DeployedModel:
    """With what an earlier start has made, or what is made now; where that fails, with the exact precision and nothing
    compiled: engines then do it for themselves.

    Raises ConfigError, ModelDirectoryError.
    """
    cache = await asyncio.to_thread(find_model_cache, deployment, model)
    if cache.model.exists():
        with suppress(OSError):
            os.utime(cache.model)
        return replace(model, compiled=cache.model, chosen=read_choice(cache.choice))
    needed, there = estimate_trial(model), find_cpu_bytes()
    if is_measured(model) and needed > there:
        problem = f"measuring takes {needed / 2**20:.0f} MB and there are {there / 2**20:.0f}"
    else:
        problem = await compile_ahead(deployment, model, cache, stopping)
    found = read_choice(deployment.choice_path(model))
    for path in (cache.model, deployment.compiled_path(model)):
        if path.exists():
            return replace(model, compiled=path, chosen=found)
    if stopping.is_set():
        return model
    if not is_measured(model):
        logger.warning("each engine of %s compiles it for itself, because %s", model.config.name, problem)
        return model
    if found is None:
        logger.warning("%s runs in %s, the exact precision, because %s", model.config.name, EXACT, problem)
        table = ((model.config.limits.max_batch_tokens, EXACT),)
        found = ChosenPrecision(table, model.config.engine.accuracy, problem=problem)
    return replace(model, chosen=found)


def find_model_cache(deployment: Deployment, model: DeployedModel) -> CompileCache:
    """In the run directory where there is no home."""
    limits = model.config.limits
    sizes = (limits.max_batch_tokens, limits.max_batch_requests, model.max_input_tokens)
    heads = [head.info for head in model.heads]
    settled = (model.threads, sizes, model.config.speculative, model.info, heads, list_sample_texts())
    others = [head.directory for head in model.heads if head.directory != model.directory]
    if model.draft_directory is not None:
        others.append(model.draft_directory)
    try:
        return find_cache(model.directory, model.config.engine, *settled, others=others)
    except RuntimeError:
        return CompileCache(deployment.compiled_path(model), deployment.choice_path(model))


async def compile_ahead(
    deployment: Deployment, model: DeployedModel, cache: CompileCache, stopping: asyncio.Event
) -> str:
    """Let a process write what it makes into the cache, or into the run directory. Returns how that went wrong if it
    did.

    Raises ConfigError where the process says that the model cannot be used.
    """
    hangs: list[Child] = []
    arguments = [str(deployment.run_dir), str(model.index), str(cache.model), str(cache.choice)]
    variables = {**VARIABLES, **show_device(model.config.engine, 0, os.environ)}
    child = Child(f"compiling {model.config.name}", "server.processes.compile_process", arguments, variables=variables)
    async with started(child, hangs) as ending:
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait([ending, stop], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not ending.done():
            return f"the process that compiles had not ended after {PATIENCE_S:.0f} s"
    try:
        status = ending.result()
    except OSError as error:
        return f"the process that compiles could not be started: {error.strerror}"
    if status == CANNOT_START:
        raise ConfigError(f"model {model.config.name} cannot be started; the reason is above")
    if hangs:
        return f"the process that compiles said nothing for {HEARTBEAT_PATIENCE_S:.0f} s"
    return f"the process that compiles ended with status {status}"


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
