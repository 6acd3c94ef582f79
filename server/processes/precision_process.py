"""Chooses a model's precision: `... precision_process RUN_DIR MODEL_INDEX CACHE NUM_STARTS`.

Started by the supervisor, alone, before any engine. Loads the model, has it judged and timed in every precision, and
writes what was chosen into the run directory, and into the file CACHE for later starts.
"""

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import uvloop

from models.load import load_model
from runtime.build import choose_for
from runtime.precision_cache import write_choice
from runtime.precision_trial import Samples
from server.engine.executor import run_in_passing_thread
from server.errors import InvalidField
from server.processes.deployment import DeployedModel, load
from server.processes.engine_process import find_limits, settle_engine
from server.processes.sample_texts import list_sample_texts
from server.processes.startup import (
    end_where_it_would_fail_again,
    make_progress,
    set_up_logging,
    stay_with_parent,
)
from server.processes.text_batches import make_batches, tokenize

logger = logging.getLogger("padless")


def choose(model: DeployedModel, result: Path, cache: Path) -> None:
    """Raises ModelDirectoryError, UnusableConfig, OSError."""
    progress = make_progress(f"{model.config.name}/precision")
    samples = find_samples(model)
    progress("reading weights", 0, 1)
    module = load_model(model.directory, model.info)
    progress("reading weights", 1, 1)
    config = settle_engine(model)
    chosen = choose_for(module, config, find_limits(model), samples, progress)
    write_choice(result, chosen)
    if chosen.kernels == "torch" and config.cpu_kernels != "torch":
        return  # what could not be compiled may be there the next time, and changes everything
    try:
        write_choice(cache, chosen)
    except OSError as error:
        logger.warning("%s: what was chosen is not remembered: %s", cache, error.strerror)


def find_samples(model: DeployedModel) -> Samples | None:
    """Our texts as the model's tokenizer reads them, in batches that fit whatever the memory is capped to. None where
    it has no tokenizer, or one that leaves nothing of some of them. Raises ModelDirectoryError."""
    if not (model.text_directory / "tokenizer.json").exists():
        return None
    texts = list_sample_texts()
    try:
        sequences = tokenize(model, texts)
    except InvalidField:
        return None
    batches = make_batches(sequences, model.max_input_tokens, model.config.limits.max_batch_requests)
    return Samples(batches, f"{len(texts)} sample texts")


async def run(run_dir: Path, model_index: int, cache: Path) -> None:
    def stop() -> None:
        os._exit(0)  # nothing to finish, and the thread that computes cannot be interrupted

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop)
    heart = stay_with_parent(stop)
    deployment = load(run_dir)
    model = deployment.models[model_index]
    work = partial(choose, model, deployment.choice_path(model), cache)
    await asyncio.to_thread(run_in_passing_thread, work)
    heart.cancel()


def main() -> None:
    run_dir, model_index, cache, _ = sys.argv[1:]
    set_up_logging(load(Path(run_dir)).config.server.log_level)
    with end_where_it_would_fail_again(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Path(run_dir), int(model_index), Path(cache)))


if __name__ == "__main__":
    main()
