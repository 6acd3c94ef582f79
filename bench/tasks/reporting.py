"""Measurements of tasks as a table: a row per engine, times by Padless INT8's."""

from collections.abc import Sequence

from bench.peers.reporting import group_cells, group_failures
from bench.tasks.catalogue import OURS
from bench.tasks.measuring import TaskMeasurement
from bench.timing import Comparison, format_ratio

HEADING = ["task", "threads", "sequences", "engine", "batch", "median ms", "tokens/s", "times Padless int8 (10-90 %)"]
HEADING += ["correlation", "peak MB", "failure"]


def build_table(measurements: Sequence[TaskMeasurement]) -> list[list[str]]:
    """The fastest of a cell first; last what failed, a row per engine and reason."""
    table = [HEADING]
    for cell in group_cells(result for result in measurements if not result.failure):
        comparison = Comparison({result.engine: result.seconds for result in cell})
        table += [build_row(result, comparison) for result in sorted(cell, key=TaskMeasurement.median_s)]
    return table + [[*cells, *"------", reason] for cells, reason in group_failures(measurements)]


def build_row(result: TaskMeasurement, comparison: Comparison) -> list[str]:
    return [
        result.model,
        str(result.threads),
        result.workload,
        result.engine,
        str(result.batch_size),
        f"{result.median_s() * 1e3:.0f}",
        f"{result.rate():.0f}",
        format_ratio(comparison.ratio(result.engine, OURS)) if OURS in comparison.seconds else "-",
        "-" if result.correlation is None else f"{result.correlation:.4f}",
        "-" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:.0f}",
        "",
    ]
