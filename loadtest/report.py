"""Shows results: a plain-text table, a CSV file, a plot of throughput against latency, and where and when it was.

Knows nothing of how they were measured.
"""

import csv
import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from loadtest.measure import Result

MAX_CLIENT_CPU = 0.8  # of its one core
MAX_LAG_SHARE = 0.1  # of the SLO

COLUMNS = {
    "mode": "mode",
    "offered_per_s": "offered/s",
    "requests_per_s": "req/s",
    "texts_per_s": "texts/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "errors": "errors",
    "rejected": "429",
    "max_in_flight": "in flight",
    "lag_p99_ms": "lag ms",
    "client_cpu": "cpu",
}


def describe_run(*, url: str, workload: dict[str, Any], info: Any, command: Sequence[str]) -> dict[str, Any]:
    """All that is needed to know what the numbers of a run are of."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": read_cpu_model(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "git_commit": read_git_commit(),
        "url": url,
        "command": list(command),
        "workload": workload,
        "server_info": info,
    }


def read_cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_git_commit() -> str | None:
    """The commit of the working directory, with a plus if there are changes; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Every field of every result; a number that does not exist is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Result)])
        writer.writeheader()
        for result in results:
            writer.writerow({key: "" if is_nan(value) else value for key, value in asdict(result).items()})


def write_json(description: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def write_plot(results: Sequence[Result], path: Path, *, slo_ms: float, title: str) -> None:
    """Throughput against latency, one line per percentile of the sweep; runs past saturation are hollow."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps = sorted((row for row in results if row.mode == "sweep"), key=lambda row: row.offered_per_s)
    for label, name in (("p50", "p50_ms"), ("p95", "p95_ms"), ("p99", "p99_ms")):
        kept = [row for row in steps if not row.is_saturated]
        (line,) = axes.plot(
            [row.requests_per_s for row in kept], [getattr(row, name) for row in kept], marker="o", label=label
        )
        lost = [row for row in steps if row.is_saturated]
        axes.scatter(
            [row.requests_per_s for row in lost],
            [getattr(row, name) for row in lost],
            facecolors="none",
            edgecolors=line.get_color(),
        )
    for marker, row in zip("sD", (row for row in results if row.mode != "sweep"), strict=False):
        label = f"{row.mode}, {row.connections} connections, p99"
        axes.plot([row.requests_per_s], [row.p99_ms], marker=marker, linestyle="none", label=label)
    axes.axhline(slo_ms, color="grey", linestyle="--", label=f"SLO {slo_ms:g} ms")
    axes.set(xlabel="answered requests/s", ylabel="latency, ms", yscale="log", title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


def format_table(results: Sequence[Result]) -> str:
    """The results as aligned columns."""
    rows = [[*COLUMNS.values(), "SLO"], *(format_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def format_line(result: Result) -> str:
    """One result as a line of progress."""
    load = f"{result.offered_per_s:.1f}/s offered" if result.mode == "sweep" else f"{result.connections} connections"
    failed = f", {result.errors + result.rejected} failed" if result.errors + result.rejected else ""
    rates = f"{result.requests_per_s:.1f} req/s, p99 {format_cell(result.p99_ms)} ms{failed}"
    return f"{result.mode:<6}  {load}: {rates}  {format_row(result)[-1]}".rstrip()


def format_row(result: Result) -> list[str]:
    cells = [format_cell(getattr(result, name)) for name in COLUMNS]
    if result.mode != "sweep":
        return [*cells, ""]
    verdict = "saturated" if result.is_saturated else "missed"
    return [*cells, "met" if result.meets_slo else verdict]


def format_cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return str(value)


def format_notes(results: Sequence[Result], best: Result | None, *, slo_ms: float) -> list[str]:
    """What a reader of the table must not miss: the answer, the failures, and a client that was itself the limit."""
    notes = []
    if best:
        at = f"p99 {best.p99_ms:.1f} ms, SLO {slo_ms:g} ms"
        notes.append(
            f"highest rate with the SLO met: {best.requests_per_s:.1f} req/s, {best.texts_per_s:.1f} texts/s ({at})"
        )
    elif any(result.mode == "sweep" for result in results):
        notes.append(f"no rate that was tried met the SLO of {slo_ms:g} ms")
    for result in results:
        name = f"{result.mode} {result.offered_per_s:.1f}/s" if result.mode == "sweep" else result.mode
        if result.failures:
            notes.append(f"{name}: {result.failures}")
        if result.client_cpu > MAX_CLIENT_CPU or result.lag_p99_ms > MAX_LAG_SHARE * slo_ms:
            notes.append(f"{name}: the client may be the limit (see lag and cpu)")
    return notes
