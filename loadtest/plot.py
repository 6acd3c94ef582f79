"""Draws results: answered requests per second against latencies, and their limits. Knows nothing of how they came."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.measure import Result
from loadtest.slo import TokenSlo


class Panel(NamedTuple):
    """One latency: its name, the fields of a `Result` that hold its percentiles, and its limit."""

    name: str
    percentiles: dict[str, str]
    limit_ms: float
    limit_name: str


def write_plot(
    results: Sequence[Result], path: Path, *, slo_ms: float, token_slo: TokenSlo | None = None, title: str
) -> None:
    """One panel for embeddings, two for generation."""
    panels = list_panels(slo_ms, token_slo)
    figure = Figure(figsize=(8 * len(panels), 5), dpi=120, layout="constrained")
    for place, panel in enumerate(panels, start=1):
        draw_panel(figure.add_subplot(1, len(panels), place), results, panel)
    figure.suptitle(title)
    figure.savefig(path)


def list_panels(slo_ms: float, token_slo: TokenSlo | None) -> list[Panel]:
    if token_slo is None:
        percentiles = {"p50": "p50_ms", "p95": "p95_ms", "p99": "p99_ms"}
        return [Panel("latency", percentiles, slo_ms, f"SLO {slo_ms:g} ms")]
    return [
        Panel(
            "time to first token",
            {"p50": "ttft_p50_ms", "p95": "ttft_p95_ms", "p99": "ttft_p99_ms"},
            token_slo.ttft_ms,
            f"SLO {token_slo.ttft_ms:g} ms",
        ),
        Panel(
            "inter-token latency",
            {"p50": "itl_p50_ms", "p95": "itl_p95_ms", "p99": "itl_p99_ms", "longest": "itl_max_ms"},
            token_slo.itl_ms,
            f"SLO {token_slo.itl_ms:g} ms, of a request's mean",
        ),
    ]


def draw_panel(axes: Axes, results: Sequence[Result], panel: Panel) -> None:
    """A line per percentile of the sweep, its saturated runs hollow; a point for each run of another mode."""
    steps = sorted((row for row in results if row.mode == "sweep"), key=lambda row: row.offered_per_s)
    kept, lost = ([row for row in steps if row.is_saturated == is_lost] for is_lost in (False, True))
    for label, name in panel.percentiles.items():
        (line,) = axes.plot(
            [row.requests_per_s for row in kept], [getattr(row, name) for row in kept], marker="o", label=label
        )
        axes.scatter(
            [row.requests_per_s for row in lost],
            [getattr(row, name) for row in lost],
            facecolors="none",
            edgecolors=line.get_color(),
        )
    for marker, row in zip("sD", (row for row in results if row.mode != "sweep"), strict=False):
        label = f"{row.mode}, {row.connections} connections, p99"
        p99_ms = getattr(row, panel.percentiles["p99"])
        axes.plot([row.requests_per_s], [p99_ms], marker=marker, linestyle="none", label=label)
    # The line is never at the edge; alone it would leave matplotlib without a height.
    axes.update_datalim([(0, panel.limit_ms / 2), (0, panel.limit_ms * 2)])
    axes.axhline(panel.limit_ms, color="grey", linestyle="--", label=panel.limit_name)
    axes.set(xlabel="answered requests/s", ylabel=f"{panel.name}, ms", yscale="log")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
