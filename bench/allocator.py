"""`python -m bench.allocator`: activation memory over 500 mixed batches, by four ways of managing it.

- padless: the arena, from cold: plans cached per bucket, chunks that persist.
- Turbo: TurboTransformers' allocator as published: plans anew for each batch, frees unused chunks at once.
- one region: greedy-by-size offset calculation (Pisarchyk and Lee, 2020) for each batch, reallocated when the need
  changes.
- torch: what the framework's own allocator is asked for when the unfused module runs op by op. Derived from the graph;
  a few batches are run under torch's profiler to check.

Same model, same batches. The first three plan the same fused graph.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.fx import GraphModule
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from bench.minilm import DIRECTORY, build_ours, info
from bench.report import RESULTS, write_results
from bench.traffic import pack_sorted, sample_lengths, sample_sequences
from models.load import load_model
from runtime.batch import Batch
from runtime.build import trace_passes
from runtime.config import EngineConfig
from runtime.lower import lower
from runtime.memory.arena import Arena
from runtime.memory.lifetimes import BatchShape, Lifetime, align_up, live_peak, round_shape
from runtime.memory.planner import Region, fill_region
from runtime.program import Program

NUM_BATCHES = 500
NUM_PROFILED = 10
MAX_TOKENS = 2048
LARGEST = BatchShape(MAX_TOKENS, 64, 256)
TURBO_CHUNK_BYTES = 2 * 2**20
TURBO_SCALE = 1.2

Record = tuple[list[int], list[int], float]
"""Bytes held after each batch, bytes newly allocated for each batch, seconds of planning in all."""


def sample_batches() -> list[Batch]:
    """1 to 64 log-normal sequences, cut to the token budget."""
    rng = np.random.default_rng(2)
    batches = []
    for _ in range(NUM_BATCHES):
        lengths = sample_lengths("lognormal", int(rng.integers(1, 65)), rng)
        lengths = lengths[np.cumsum(lengths) <= MAX_TOKENS]
        batches.append(pack_sorted(sample_sequences(lengths, rng)))
    return batches


def run_padless(program: Program, shapes: Sequence[BatchShape]) -> Record:
    arena: Arena[int] = Arena(lambda num_bytes: num_bytes)
    held, allocated, planning_s = [], [], 0.0
    for shape in shapes:
        before = arena.allocated_bytes
        bucket = round_shape(shape, LARGEST)
        started_s = time.perf_counter()
        arena.layout(bucket, lambda bucket=bucket: program.lifetimes(bucket))
        planning_s += time.perf_counter() - started_s
        held.append(arena.reserved_bytes)
        allocated.append(arena.allocated_bytes - before)
    return held, allocated, planning_s


def run_turbo(program: Program, shapes: Sequence[BatchShape]) -> Record:
    chunks: list[int] = []
    held, allocated, planning_s = [], [], 0.0
    for shape in shapes:
        started_s = time.perf_counter()
        chunks, new_bytes = plan_turbo(program.lifetimes(shape), chunks)
        planning_s += time.perf_counter() - started_s
        held.append(sum(chunks))
        allocated.append(new_bytes)
    return held, allocated, planning_s


def plan_turbo(lifetimes: list[Lifetime], chunks: list[int]) -> tuple[list[int], int]:
    """One round of TurboTransformers' algorithm: the chunks that stay, and the bytes newly allocated."""
    regions = [Region(size, []) for size in sorted(chunks)]
    new_bytes = 0
    for life in sorted(lifetimes, key=lambda life: -life.num_bytes):
        for region in regions:
            offset = region.find_offset(life)
            if offset is not None:
                region.place(offset, life)
                break
        else:
            size = max(TURBO_CHUNK_BYTES, align_up(int(life.num_bytes * TURBO_SCALE)))
            regions.append(Region(size, [(0, life)]))
            regions.sort(key=lambda region: region.capacity or 0)
            new_bytes += size
    return [region.capacity or 0 for region in regions if region.placed], new_bytes


def run_one_region(program: Program, shapes: Sequence[BatchShape]) -> Record:
    size = 0
    held, allocated, planning_s = [], [], 0.0
    for shape in shapes:
        started_s = time.perf_counter()
        lifetimes = program.lifetimes(shape)
        order = sorted(range(len(lifetimes)), key=lambda index: -lifetimes[index].num_bytes)
        _, peak = fill_region(lifetimes, order)
        planning_s += time.perf_counter() - started_s
        allocated.append(peak if peak != size else 0)
        size = peak
        held.append(size)
    return held, allocated, planning_s


def run_torch(unfused: Program, shapes: Sequence[BatchShape]) -> Record:
    """Every intermediate allocated as it is made and freed after its last use, as an op-by-op run does."""
    lifetimes = [unfused.lifetimes(shape) for shape in shapes]
    return (
        [live_peak(lives) for lives in lifetimes],
        [sum(life.num_bytes for life in lives) for lives in lifetimes],
        0.0,
    )


def check_torch(batches: Sequence[Batch], record: Record) -> list[float]:
    """Bytes that torch's profiler sees allocated by the module, over those derived, for a few of the batches."""
    engine = build_ours(kind="reference", threads=torch.get_num_threads())
    ratios = []
    for index in tqdm(range(0, NUM_BATCHES, NUM_BATCHES // NUM_PROFILED), desc="profiling torch", leave=False):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            engine.run(batches[index])
        events = profiler.profiler.kineto_results.events()
        total = sum(max(0, event.nbytes()) for event in events if event.name() == "[memory]")
        ratios.append(total / record[1][index])
    return ratios


def plot(records: dict[str, Record], bounds: list[int]) -> None:
    figure = Figure(figsize=(9, 4.5))
    axes = figure.subplots()
    for name, (held, _, _) in records.items():
        axes.plot(np.array(held) / 2**20, label=name, linewidth=0.8 if name != "padless" else 2.0)
    axes.plot(np.array(bounds) / 2**20, color="black", linewidth=0.5, label="live bytes of the fused graph")
    axes.set(xlabel="batch", ylabel="MB held", title="Activation memory over 500 mixed batches")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "allocator.png", dpi=110)


def main() -> None:
    stages: dict[str, Program] = {}

    def keep_unfused(name: str, graph_module: GraphModule) -> None:
        if name == "capture":
            stages[name] = lower(graph_module)

    program = trace_passes(load_model(DIRECTORY, info()), EngineConfig(precision="fp32"), keep_unfused)
    batches = sample_batches()
    shapes = [BatchShape(batch.num_tokens, batch.num_seqs, batch.max_seqlen) for batch in batches]
    planners: dict[str, Callable[[], Record]] = {
        "padless": lambda: run_padless(program, shapes),
        "Turbo": lambda: run_turbo(program, shapes),
        "one region": lambda: run_one_region(program, shapes),
        "torch": lambda: run_torch(stages["capture"], shapes),
    }
    records = {name: run() for name, run in planners.items()}
    bounds = [live_peak(program.lifetimes(shape)) for shape in shapes]
    table = [["allocator", "peak MB", "allocated MB in all", "batches that allocate", "planning ms in all"]]
    for name, (held, allocated, planning_s) in records.items():
        counts = [f"{max(held) / 2**20:.1f}", f"{sum(allocated) / 2**20:.0f}", str(sum(size > 0 for size in allocated))]
        table.append([name, *counts, f"{planning_s * 1e3:.0f}" if planning_s else "-"])
    table.append(["live bytes, fused graph", f"{max(bounds) / 2**20:.1f}", "", "", ""])
    profiled = check_torch(batches, records["torch"])
    print(f"torch's profiler over derived bytes: {min(profiled):.2f} to {max(profiled):.2f}")
    results = {name: {"held": r[0], "allocated": r[1], "planning_s": r[2]} for name, r in records.items()}
    write_results("allocator", table, summarise(results) | {"torch_profiler_over_derived": profiled})
    plot(records, bounds)


def summarise(results: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Totals; the plot shows the rest."""
    return {
        name: {
            "peak_bytes": max(values["held"]),
            "allocated_bytes": sum(values["allocated"]),
            "batches_that_allocate": sum(size > 0 for size in values["allocated"]),
            "planning_s": values["planning_s"],
        }
        for name, values in results.items()
    }


if __name__ == "__main__":
    main()
