"""Shows results: a plain-text table, a CSV file, and where and when it was; the picture is in `plot`.

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

from loadtest.measure import Result
from loadtest.slo import MIN_GOOD_SHARE, TokenSlo

MAX_CLIENT_CPU = 0.8  # of its one core
MAX_LAG_SHARE = 0.1  # of the SLO; of generation of the shorter limit

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
GENERATION_COLUMNS = {
    "mode": "mode",
    "offered_per_s": "offered/s",
    "requests_per_s": "req/s",
    "tokens_per_s": "tokens/s",
    "ttft_p50_ms": "TTFT p50",
    "ttft_p95_ms": "p95",
    "ttft_p99_ms": "p99",
    "itl_p50_ms": "ITL p50",
    "itl_p95_ms": "p95",
    "itl_p99_ms": "p99",
    "itl_max_ms": "max ms",
    "good_share": "good",
    "goodput_per_s": "good/s",
    "p50_ms": "total p50",
    "p99_ms": "p99 ms",
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


def format_table(results: Sequence[Result]) -> str:
    """The results as aligned columns."""
    columns = GENERATION_COLUMNS if any(row.is_generation for row in results) else COLUMNS
    rows = [[*columns.values(), "SLO"], *(format_row(result, columns) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def format_line(result: Result) -> str:
    """One result as a line of progress."""
    load = f"{result.offered_per_s:.1f}/s offered" if result.mode == "sweep" else f"{result.connections} connections"
    failed = f", {result.errors + result.rejected} failed" if result.errors + result.rejected else ""
    rates = f"{result.requests_per_s:.1f} req/s, {format_latencies(result)}{failed}"
    return f"{result.mode:<6}  {load}: {rates}  {format_verdict(result)}".rstrip()


def format_latencies(result: Result) -> str:
    if not result.is_generation:
        return f"p99 {format_cell(result.p99_ms)} ms"
    ttft, itl = format_cell(result.ttft_p99_ms), format_cell(result.itl_p99_ms)
    good = "" if is_nan(result.good_share) else f", {result.good_share:.0%} good"
    return f"{result.tokens_per_s:.0f} tokens/s, p99 of TTFT {ttft} ms, of ITL {itl} ms{good}"


def format_row(result: Result, columns: dict[str, str]) -> list[str]:
    return [*(format_cell(getattr(result, name)) for name in columns), format_verdict(result)]


def format_verdict(result: Result) -> str:
    if result.mode != "sweep":
        return ""
    return "met" if result.meets_slo else "saturated" if result.is_saturated else "missed"


def format_cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return str(value)


def format_notes(
    results: Sequence[Result], best: Result | None, *, slo_ms: float, token_slo: TokenSlo | None = None
) -> list[str]:
    """What a reader of the table must not miss: the answer, the failures, and a client that was itself the limit."""
    notes = []
    if best:
        notes.append(format_best(best, slo_ms, token_slo))
    elif any(result.mode == "sweep" for result in results):
        slo = f"{slo_ms:g} ms" if token_slo is None else format_objective(token_slo)
        notes.append(f"no rate that was tried met the SLO of {slo}")
    shortest_ms = slo_ms if token_slo is None else min(token_slo)
    for result in results:
        name = f"{result.mode} {result.offered_per_s:.1f}/s" if result.mode == "sweep" else result.mode
        if result.failures:
            notes.append(f"{name}: {result.failures}")
        if result.client_cpu > MAX_CLIENT_CPU or result.lag_p99_ms > MAX_LAG_SHARE * shortest_ms:
            notes.append(f"{name}: the client may be the limit (see lag and cpu)")
    return notes


def format_best(best: Result, slo_ms: float, token_slo: TokenSlo | None) -> str:
    """The row with the highest rate that the server can take."""
    rate = f"highest rate with the SLO met: {best.requests_per_s:.1f} req/s"
    if token_slo is None:
        return f"{rate}, {best.texts_per_s:.1f} texts/s (p99 {best.p99_ms:.1f} ms, SLO {slo_ms:g} ms)"
    good = f"{best.good_share:.1%} good, SLO {format_objective(token_slo)}"
    return f"{rate}, {best.tokens_per_s:.1f} tokens/s, goodput {best.goodput_per_s:.1f} req/s ({good})"


def format_objective(slo: TokenSlo) -> str:
    return f"{MIN_GOOD_SHARE:.0%} with {slo}"
