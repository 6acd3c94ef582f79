"""An engine's own process: `... engine_process RUN_DIR MODEL_INDEX REPLICA NUM_STARTS`.

Started by the supervisor, before it is settled what to open: torch takes seconds to import. Then opens the compiled
model, and serves calls from a Unix socket until SIGTERM.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from models.tokenizer_files import has_tokenizer
from runtime.engine import Engine, EngineInfo, Progress
from server.engine.batchers.batcher import Batcher, StepLimits
from server.engine.batchers.cache_metrics import CacheMetrics
from server.engine.batchers.decoding import DecodingBatcher, DecodingOptions
from server.engine.batchers.encoding import EncodingBatcher
from server.engine.batchers.packed import PackedBatcher
from server.engine.batchers.padded import PaddedBatcher
from server.engine.core_lease import CoreLease
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop
from server.engine.engine_server import EngineServer
from server.engine.executor import DeviceThread, pin_thread, run_in_passing_thread
from server.engine.padded_costs import PaddedCosts
from server.metrics import Metrics
from server.processes.compiling import find_model_cache
from server.processes.core_plan import Place
from server.processes.deployment import DeployedModel, Deployment, load
from server.processes.opening import Costs, find_costs, open_model
from server.processes.startup import (
    CRASHED,
    START_ANEW,
    end_where_it_would_fail_again,
    make_progress,
    set_up_logging,
    spare_garbage_collector,
    stay_with_parent,
)
from server.tasks.head import Work
from server.tasks.registry import TASKS
from server.text.grammar import load_grammars

SWITCH_S = 50e-6
"""After this long a thread that waits for the interpreter gets it. With Python's 5 ms a step that was given to the
device's thread begins only when the loop's has told and counted everything of the last one."""

MakeEngine = Callable[[DeployedModel, int, Progress], Engine]
"""Of a model, for a replica."""


def build_loop(
    deployment: Deployment,
    model: DeployedModel,
    replica: int,
    metrics: Metrics,
    make_engine: MakeEngine,
    lease: CoreLease | None = None,
    cores: Set[int] = frozenset(),
) -> EngineLoop[Any]:
    """Everything from the model to a loop that can be started; shows progress.

    To be called on a thread of its own, which then computes on `cores`, as the engine's will; none: on any.
    """
    pin_thread(cores)
    progress = make_progress(f"{model.config.name}/{replica}")
    engine = make_engine(model, replica, progress)
    metrics.tell_device(model.config.name, replica, engine.info.device)
    limits = model.config.limits
    step_limits = StepLimits(
        min(limits.max_batch_tokens, engine.info.max_batch_tokens),
        limits.max_batch_requests,
        limits.max_wait_ms / 1e3,
        engine.info.max_batch_logits,
    )
    costs: Costs = PaddedCosts() if engine.info.pads else CostModel()
    if model.config.engine.warmup:
        engine.warmup(progress)
        costs = find_costs(model, engine, find_kept(deployment, model), progress)
    build_batcher = BATCHERS[model.head.work, engine.info.pads]
    return EngineLoop(
        partial(build_batcher, model, replica, engine.info, step_limits, costs, metrics),
        DeviceThread(engine, f"engine-{model.config.name}-{replica}", lease, cores),
        metrics,
        model=model.config.name,
        replica=replica,
        canary_interval_s=deployment.config.server.canary_interval_s,
    )


def find_kept(deployment: Deployment, model: DeployedModel) -> Path | None:
    """What the costs of a model's steps are kept beside: the model as it was compiled, or its place where it is served
    from a file as it is."""
    return model.compiled if model.onnx_file is None else find_model_cache(deployment, model).model


def build_encoding(
    make: Callable[..., EncodingBatcher],
    model: DeployedModel,
    replica: int,
    info: EngineInfo,
    limits: StepLimits,
    costs: Costs,
    metrics: Metrics,
    wake: Callable[[], None],
) -> EncodingBatcher:
    return make(limits, costs, info.outputs, {task.name: task.reduce_rows for task in TASKS.values()})


def build_decoding(
    model: DeployedModel,
    replica: int,
    info: EngineInfo,
    limits: StepLimits,
    cost_model: CostModel,
    metrics: Metrics,
    wake: Callable[[], None],
) -> DecodingBatcher:
    return DecodingBatcher(
        limits,
        cost_model,
        info,
        plan_decoding(model),
        vocab_size=model.info.output_dim,
        wake=wake,
        metrics=CacheMetrics(metrics, model.config.name, replica),
    )


BATCHERS: dict[tuple[Work, bool], Callable[..., Batcher[Any]]] = {
    (Work.ENCODE, False): partial(build_encoding, PackedBatcher),
    (Work.ENCODE, True): partial(build_encoding, PaddedBatcher),
    (Work.DECODE, False): build_decoding,
    (Work.ENCODE_DECODE, False): build_decoding,
}
"""By the work and whether the engine pads, which none does that decodes."""


def plan_decoding(model: DeployedModel) -> DecodingOptions:
    speculative = model.config.speculative
    options = DecodingOptions(
        model.max_total_tokens,
        prefill_chunk_tokens=model.config.limits.prefill_chunk_tokens,
        has_prefix_cache=model.config.engine.kv_cache.prefix_caching,
        num_drafts=speculative.num_tokens if speculative is not None and speculative.method == "ngram" else 0,
    )
    if not has_tokenizer(model.text_directory):
        return options
    grammars = load_grammars(model.text_directory, model.info.output_dim, model.info.eos_token_ids)
    return options if grammars is None else replace(options, make_matcher=grammars.make_matcher)


def list_cores(place: Place | None, num_cores: int) -> Set[int]:
    """Where the engine is to compute. None, which is any, where a container's quota gives fewer cores than there are:
    it says nothing of which, and the kernel chooses better."""
    cores = sorted(os.sched_getaffinity(0))
    if place is None or len(cores) != num_cores:
        return frozenset()
    return frozenset(cores[index] for index in place.cores)


def open_lease(deployment: Deployment, place: Place | None) -> CoreLease | None:
    """Raises OSError."""
    if place is None or place.lease is None:
        return None
    return CoreLease(deployment.lease_path(place.lease.number), place.lease.shares, place.lease.seat)


async def serve(make_engine: MakeEngine, run_dir: Path, model_index: int, replica: int, num_starts: int) -> None:
    stopping = asyncio.Event()
    is_loading = True

    def stop() -> None:
        if is_loading:  # nothing to finish, and the loading thread cannot be interrupted
            os._exit(0)
        stopping.set()

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop)
    settled = asyncio.Event()
    heart = stay_with_parent(stop, settled.set)
    await settled.wait()
    deployment = load(run_dir)
    model = deployment.models[model_index]
    if make_engine is open_model and not model.is_openable:
        sys.exit(START_ANEW)  # compiling has failed since this process was started
    place = deployment.place(model, replica)
    metrics = Metrics()
    if num_starts > 1:
        metrics.count_engine_restart(model.config.name, replica)
    cores = list_cores(place, deployment.num_cores)
    lease = open_lease(deployment, place)
    build = partial(build_loop, deployment, model, replica, metrics, make_engine, lease, cores)
    engine_loop = await asyncio.to_thread(run_in_passing_thread, build)
    is_loading = False
    spare_garbage_collector()
    sys.setswitchinterval(SWITCH_S)
    if engine_loop.batcher.max_steps_under_way == 1 and len(cores) == 1:
        pin_thread(cores)
    await engine_loop.start()
    params = {task.name: task.params for task in TASKS.values()}
    server = EngineServer(engine_loop, deployment.socket_path(model, replica), params)
    await server.start()
    ends = [asyncio.create_task(event.wait()) for event in (stopping, engine_loop.crashed)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if engine_loop.crashed.is_set():
        os._exit(CRASHED)  # the device thread may be stuck; the supervisor starts a new process
    await server.close()
    await engine_loop.close()
    heart.cancel()


def run_engine(make_engine: MakeEngine) -> None:
    run_dir, *numbers = sys.argv[1:]
    set_up_logging(load(Path(run_dir)).config.server.log_level)
    with end_where_it_would_fail_again(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(make_engine, Path(run_dir), *(int(number) for number in numbers)))


if __name__ == "__main__":
    run_engine(open_model)
