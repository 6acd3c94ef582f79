"""Compiles a model: `... compile_process RUN_DIR MODEL_INDEX MODEL_FILE CHOICE_FILE NUM_STARTS`.

Started by the supervisor, alone, before any engine. Reads the weights, has the model judged and timed in every
precision if that is left to measurement, and writes what engines map: into the cache for later starts too, or into the
run directory where the cache cannot be written.
"""

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvloop

from models.load import load_model
from models.tokenizer_files import has_tokenizer
from runtime.build import compile_model
from runtime.compile_cache import CompileCache, drop_unused, read_choice, write_choice
from runtime.compiled import CompiledModel, save_compiled
from runtime.precision_trial import Samples
from server.engine.executor import run_in_passing_thread
from server.errors import InvalidField
from server.processes.building import load_draft
from server.processes.compiling import is_measured
from server.processes.deployment import DeployedModel, Deployment, load
from server.processes.opening import find_limits, measure_costs, open_model, save_costs, settle_engine
from server.processes.sample_texts import list_sample_texts
from server.processes.startup import (
    end_where_it_would_fail_again,
    make_progress,
    set_up_logging,
    stay_with_parent,
)
from server.processes.text_batches import make_batches, tokenize

logger = logging.getLogger("padless")


def compile_ahead(deployment: Deployment, model: DeployedModel, cache: CompileCache) -> None:
    """Raises ModelDirectoryError, UnusableConfig, OSError."""
    progress = make_progress(f"{model.config.name}/compiling")
    config, limits = settle_engine(model, 0), find_limits(model)
    known = read_choice(cache.choice)
    samples = find_samples(model) if known is None and is_measured(model) else None
    progress("reading weights", 0, 1)
    module, draft = load_model(model.directory, model.info, model.heads), load_draft(model)
    progress("reading weights", 1, 1)
    compiled = compile_model(module, config, limits, progress, draft, known, samples)
    if compiled.chosen is not None:
        write_choice(deployment.choice_path(model), compiled.chosen)
    path = keep(deployment, model, cache, compiled)
    del module, draft, compiled
    if config.warmup:
        engine = open_model(replace(model, compiled=path), 0, progress)
        save_costs(measure_costs(model, engine, progress), path)


def keep(deployment: Deployment, model: DeployedModel, cache: CompileCache, compiled: CompiledModel) -> Path:
    """Where it was written. Raises OSError where it can be written nowhere."""
    kernels = next(iter(compiled.programs.values())).info.kernels
    # What could not be compiled may be there the next time, and changes everything.
    is_lasting = kernels != "torch" or model.config.engine.cpu_kernels == "torch" or model.config.engine.device != "cpu"
    if is_lasting:
        try:
            if compiled.chosen is not None:
                write_choice(cache.choice, compiled.chosen)
            save_compiled(compiled, cache.model)
            drop_unused(cache.model.parent)
            return cache.model
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("%s: the compiled model is not kept for later starts: %s", cache.model, reason)
    path = deployment.compiled_path(model)
    save_compiled(compiled, path)
    return path


def find_samples(model: DeployedModel) -> Samples | None:
    """Our texts as the model's tokenizer reads them, in batches that fit whatever the memory is capped to. None where
    it has no tokenizer, or one that leaves nothing of some of them. Raises ModelDirectoryError."""
    if not has_tokenizer(model.text_directory):
        return None
    texts = list_sample_texts()
    try:
        sequences = tokenize(model, texts)
    except InvalidField:
        return None
    batches = make_batches(sequences, model.max_input_tokens, model.config.limits.max_batch_requests)
    return Samples(batches, f"{len(texts)} sample texts")


async def run(run_dir: Path, model_index: int, cache: CompileCache) -> None:
    def stop() -> None:
        """There is nothing to finish, the thread that computes cannot be interrupted, and to take captured graphs apart
        would take a second."""
        os._exit(0)

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop)
    heart = stay_with_parent(stop)
    deployment = load(run_dir)
    model = deployment.models[model_index]
    work = partial(compile_ahead, deployment, model, cache)
    await asyncio.to_thread(run_in_passing_thread, work)
    heart.cancel()
    stop()


def main() -> None:
    run_dir, model_index, model_file, choice_file, _ = sys.argv[1:]
    set_up_logging(load(Path(run_dir)).config.server.log_level)
    with end_where_it_would_fail_again(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Path(run_dir), int(model_index), CompileCache(Path(model_file), Path(choice_file))))


if __name__ == "__main__":
    main()
