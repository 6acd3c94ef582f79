"""Measurements as a table and as a picture."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.peers.measuring import Measurement
from bench.timing import Comparison, format_ratio

HEADING = ["model", "threads", "workload", "engine", "batch", "median ms", "tokens/s"]
HEADING += ["times padless best (10-90 %)", "lowest cosine", "cpus", "failure"]
COLOURS = {
    "Padless": ("#b2182b", "#d6604d", "#f4a582"),
    "CTranslate2": ("#2166ac", "#4393c3", "#92c5de", "#d1e5f0"),
    "OpenVINO": ("#00441b", "#1b7837", "#5aae61", "#a6dba0", "#c7e9c0", "#e5f5e0"),
    "ONNX Runtime on our export": ("#ce1256", "#df65b0"),
    "ONNX Runtime": ("#54278f", "#9e9ac8"),
    "Hugging Face": ("#525252", "#969696", "#cccccc"),
    "llama.cpp": ("#00441b", "#5aae61"),
    "torch.compile": ("#b8860b",),
}


def is_padless(engine: str) -> bool:
    return engine.startswith("Padless")


def group_cells(measurements: Iterable[Measurement]) -> list[list[Measurement]]:
    """Those of the same model, threads and workload, in the order they were measured in."""
    groups = groupby(measurements, lambda result: (result.model, result.threads, result.workload))
    return [list(group) for _, group in groups]


def build_table(measurements: Sequence[Measurement]) -> list[list[str]]:
    """A row per engine and cell, the fastest of a cell first; last what failed, a row per engine and reason."""
    table = [HEADING]
    for cell in group_cells(result for result in measurements if not result.failure):
        comparison = Comparison({result.engine: result.seconds for result in cell})
        ours = [result for result in cell if is_padless(result.engine)]
        best = min(ours, key=Measurement.median_s).engine if ours else None
        table += [build_row(result, comparison, best) for result in sorted(cell, key=Measurement.median_s)]
    return table + [[*cells, *"------", reason] for cells, reason in group_failures(measurements)]


def group_failures(measurements: Iterable[Measurement]) -> list[tuple[list[str], str]]:
    """Who failed where, as the first cells of a row, and why; once per engine and reason."""
    failures: dict[tuple[str, str], list[Measurement]] = {}
    for result in measurements:
        if result.failure:
            failures.setdefault((result.engine, result.failure), []).append(result)
    return [
        ([merge(column) for column in zip(*map(identify, results), strict=True)], reason)
        for (_, reason), results in failures.items()
    ]


def merge(cells: Sequence[str]) -> str:
    """What a row says that stands for several."""
    return cells[0] if len(set(cells)) == 1 else "all"


def identify(result: Measurement) -> list[str]:
    return [result.model, str(result.threads), result.workload, result.engine]


def build_row(result: Measurement, comparison: Comparison, best: str | None) -> list[str]:
    return [
        *identify(result),
        str(result.batch_size),
        f"{result.median_s() * 1e3:.0f}",
        f"{result.rate():.0f}",
        "-" if best is None else format_ratio(comparison.ratio(result.engine, best)),
        "-" if result.cosine is None else f"{result.cosine:.4f}",
        f"{result.cpus:.2f}",
        "",
    ]


def plot(measurements: Sequence[Measurement], path: Path) -> None:
    """Rates per engine and workload, one panel for each model and thread count; no file if none ran."""
    ran = [result for result in measurements if not result.failure]
    if not ran:
        return
    panels = list(dict.fromkeys((result.model, result.threads) for result in ran))
    engines = list(dict.fromkeys(result.engine for result in ran))
    figure = Figure(figsize=(15, 4.2 * len(panels) + 1.2), layout="constrained")
    figures = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (model, threads) in zip(figures, panels, strict=True):
        chosen = [result for result in ran if (result.model, result.threads) == (model, threads)]
        plot_panel(axes, chosen, engines)
        axes.set(ylabel=chosen[0].unit, title=f"{model}, {threads} thread{'s' * (threads > 1)}")
    handles, labels = figures[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=100)


def plot_panel(axes: Axes, results: Sequence[Measurement], engines: Sequence[str]) -> None:
    """Bars in groups, a group per workload; engines keep their place and colour in all panels."""
    workloads = list(dict.fromkeys(result.workload for result in results))
    width = 0.86 / len(engines)
    for place, engine in enumerate(engines):
        rates = {result.workload: result.rate() for result in results if result.engine == engine}
        centres = [group + (place - (len(engines) - 1) / 2) * width for group in range(len(workloads))]
        heights = [rates.get(workload, 0.0) for workload in workloads]
        axes.bar(centres, heights, width * 0.92, label=engine, color=pick_colour(engine, engines))
    axes.set_xticks(range(len(workloads)), workloads)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def pick_colour(engine: str, engines: Sequence[str]) -> str:
    """A hue per peer, a shade per variant."""
    for peer, shades in COLOURS.items():
        variants = [other for other in engines if other.startswith(peer)]
        if engine in variants:
            return shades[variants.index(engine) % len(shades)]
    return "black"
