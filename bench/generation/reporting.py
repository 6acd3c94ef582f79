"""Measurements of generation as a table; the picture is that of `bench.peers`."""

from collections.abc import Sequence

from bench.generation.measuring import GenerationMeasurement
from bench.peers.measuring import Measurement
from bench.peers.reporting import group_cells, group_failures, identify
from bench.timing import Comparison, format_ratio

OURS = ("Padless fp32", "Padless int8")
BEGINNING = ["model", "threads", "requests", "engine", "batch", "median s"]
END = [*(f"times {name} (10-90 %)" for name in OURS), "as reference", "cpus", "failure"]


def build_table(measurements: Sequence[GenerationMeasurement]) -> list[list[str]]:
    """A row per engine and cell, the fastest of a cell first; last what failed, a row per engine and reason."""
    unit = next((result.unit for result in measurements), GenerationMeasurement.unit)
    table = [heading := [*BEGINNING, unit, *END]]
    for cell in group_cells(result for result in measurements if not result.failure):
        comparison = Comparison({result.engine: result.seconds for result in cell})
        table += [build_row(result, comparison) for result in sorted(cell, key=Measurement.median_s)]
    return table + [[*cells, *["-"] * (len(heading) - 5), reason] for cells, reason in group_failures(measurements)]


def build_row(result: GenerationMeasurement, comparison: Comparison) -> list[str]:
    ratios = [
        format_ratio(comparison.ratio(result.engine, name)) if name in comparison.seconds else "-" for name in OURS
    ]
    return [
        *identify(result),
        str(result.batch_size),
        f"{result.median_s():.2f}",
        f"{result.rate():.{result.digits}f}",
        *ratios,
        "-" if result.agreement is None else f"{result.agreement:.0%}",
        f"{result.cpus:.2f}",
        "",
    ]
