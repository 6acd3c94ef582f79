"""Runs the locust file without its web page, in a process of its own, and reads the result from what it writes."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtest.measure import REJECTED, Result

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
SPAWN_S = 1  # locust starts its users second by second, and only then begins to count
MAX_START_S = 60.0


class LocustError(Exception):
    """Locust did not run; the message is for the user."""


@dataclass(frozen=True, kw_only=True)
class LocustRun:
    """One headless run: all users start at once, and the counts begin when they have."""

    url: str
    workload: Path
    prompts: Path | None = None
    model: str
    out: Path
    users: int = 64
    duration_s: float = 10.0


def is_installed() -> bool:
    return importlib.util.find_spec("locust") is not None


def run_locust(run: LocustRun) -> Result:
    """Runs locust to its end; its output goes to `locust.log` in the folder of the results."""
    totals, log = run.out / "locust.json", run.out / "locust.log"
    # Left behind by an earlier run it would be read as this one's.
    totals.unlink(missing_ok=True)
    run_s = math.ceil(run.duration_s) + SPAWN_S
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--reset-stats"]
    command += ["--host", run.url, "-u", str(run.users), "-r", str(run.users), "-t", f"{run_s}s"]
    command += ["--loglevel", "WARNING", "--exit-code-on-error", "0"]
    path = os.pathsep.join(filter(None, [str(LOCUSTFILE.parent.parent), os.environ.get("PYTHONPATH")]))
    names = {"PADLESS_WORKLOAD": str(run.workload), "PADLESS_MODEL": run.model, "PADLESS_TOTALS": str(totals)}
    if run.prompts is not None:
        names["PADLESS_PROMPTS"] = str(run.prompts.resolve())
    with log.open("w") as stream:
        try:
            subprocess.run(
                command,
                env=os.environ | {"PYTHONPATH": path} | names,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=run_s + MAX_START_S,
                check=True,
            )
            return read_totals(run, json.loads(totals.read_text(encoding="utf-8")))
        except (subprocess.SubprocessError, OSError) as error:
            raise LocustError(f"locust failed, see {log}: {error}") from error


def read_totals(run: LocustRun, totals: dict[str, Any]) -> Result:
    """The row of what the locust file wrote. Locust's percentiles are of all answers, to two digits above 100 ms."""
    p50_ms, p95_ms, p99_ms, p999_ms = map(float, totals["percentiles_ms"])
    failures: dict[str, int] = totals["failures"]
    num_rejected = sum(count for error, count in failures.items() if str(REJECTED) in error)
    result = Result(
        mode="locust",
        workload=run.workload.stem,
        connections=run.users,
        requests=totals["requests"],
        duration_s=run.duration_s,
        requests_per_s=totals["requests_per_s"],
        texts_per_s=totals["texts_per_s"],
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        p999_ms=p999_ms,
        errors=sum(failures.values()) - num_rejected,
        rejected=num_rejected,
        failures="; ".join(f"{error}: {count}" for error, count in failures.items()),
        max_in_flight=run.users,
    )
    return add_tokens(result, totals) if "tokens_per_s" in totals else result


def add_tokens(result: Result, totals: dict[str, Any]) -> Result:
    """What generation has besides. Each request has to be seen as a whole for goodput, and locust does not."""
    ttft_p50_ms, ttft_p95_ms, ttft_p99_ms = map(float, totals["ttft_ms"])
    itl_p50_ms, itl_p95_ms, itl_p99_ms = map(float, totals["itl_ms"])
    return replace(
        result,
        tokens_per_s=totals["tokens_per_s"],
        ttft_p50_ms=ttft_p50_ms,
        ttft_p95_ms=ttft_p95_ms,
        ttft_p99_ms=ttft_p99_ms,
        itl_p50_ms=itl_p50_ms,
        itl_p95_ms=itl_p95_ms,
        itl_p99_ms=itl_p99_ms,
        itl_max_ms=float(totals["itl_max_ms"]),
    )
