"""The command line: `python -m loadtest --url URL --workload NAME --mode MODE --out DIR`. Runs the modes and reports.

Each mode is in a file of its own; here is only which of them run, on what and for how long.
"""

import argparse
import asyncio
import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtest.client import Client, fetch
from loadtest.closed_loop import Closed, measure_closed
from loadtest.locust_run import LocustError, LocustRun, is_installed, run_locust
from loadtest.measure import Result, Traffic
from loadtest.open_loop import Step, Sweep, find_best, measure_step, run_sweep
from loadtest.options import MODES, UsageError, build_plans, choose_slo, parse_arguments
from loadtest.plot import write_plot
from loadtest.prompts import find_prompts
from loadtest.report import describe_run, format_line, format_notes, format_table, write_csv, write_json
from loadtest.server_process import ServerError, serve
from loadtest.slo import MIN_GOOD_SHARE, TokenSlo
from loadtest.stream_client import StreamConnection
from loadtest.workloads import Workload, WorkloadError, build_bodies, find_workload, load_workload


@dataclass(frozen=True)
class Target:
    """Where the load goes, and what it is."""

    url: str
    model: str
    workload_path: Path
    prompts: Path | None  # instead of the workload's own texts
    workload: Workload
    out: Path


@contextmanager
def open_server(args: argparse.Namespace) -> Iterator[str]:
    """The URL of the server under test, which runs already or is started here."""
    if not args.serve:
        yield args.url.rstrip("/")
        return
    show(f"starting the server with {args.serve}")
    with serve(args.serve, log=args.out / "server.log") as url:
        yield url
        show("stopping the server")


def fetch_json(url: str) -> Any:
    """The JSON at this address; None if there is none."""
    try:
        return json.loads(fetch(url) or b"null")
    except ValueError:
        return None


def find_model(url: str) -> str:
    try:
        return str(fetch_json(f"{url}/v1/models")["data"][0]["id"])
    except (TypeError, KeyError, IndexError) as error:
        raise UsageError(f"{url}/v1/models names no model: is the server up? If it lists none, give --model") from error


def show(line: str) -> None:
    print(line, flush=True)


def make_client(target: Target) -> Client:
    generation = target.workload.generation
    return Client(target.url) if generation is None else Client(target.url, generation.route, StreamConnection)


async def run_closed_mode(target: Target, traffic: Traffic, plan: Closed) -> Result:
    client = make_client(target)
    result = await measure_closed(client, traffic, plan)
    await client.abort()
    return result


async def run_sweep_mode(target: Target, traffic: Traffic, sweep: Sweep) -> list[Result]:
    client = make_client(target)

    async def measure_at(step: Step) -> Result:
        result = await measure_step(client, traffic, step)
        show(format_line(result))
        return result

    results = await run_sweep(measure_at, sweep)
    await client.abort()
    return results


def build_traffic(target: Target) -> Traffic:
    client = make_client(target)
    requests = [client.encode(body) for body in build_bodies(target.workload, target.model)]
    return Traffic(target.workload_path.stem, requests, target.workload.texts_per_request)


def run_locust_mode(target: Target, plan: Closed) -> Result:
    run = LocustRun(
        url=target.url,
        workload=target.workload_path,
        prompts=target.prompts,
        model=target.model,
        out=target.out,
        users=plan.connections,
        duration_s=plan.duration_s,
    )
    return run_locust(run)


def run_modes(target: Target, modes: Sequence[str], closed: Closed, sweep: Sweep) -> list[Result]:
    """Runs the modes one after the other; each result is shown as soon as it is there."""
    results = []
    traffic = build_traffic(target)
    if "locust" in modes:
        results.append(run_locust_mode(target, closed))
        show(format_line(results[-1]))
    if "closed" in modes:
        results.append(asyncio.run(run_closed_mode(target, traffic, closed)))
        show(format_line(results[-1]))
    if "sweep" in modes:
        rate = sweep.step.rate
        if math.isnan(rate):
            rate = results[-1].requests_per_s / 2 if results else probe_rate(target, traffic, closed)
        if not rate:
            show("sweep: left out, for the server answered nothing")
            return results
        sweep = replace(sweep, step=replace(sweep.step, rate=rate))
        results += asyncio.run(run_sweep_mode(target, traffic, sweep))
    return results


def probe_rate(target: Target, traffic: Traffic, closed: Closed) -> float:
    """Where a sweep begins when nothing is known of the server: half of what a short closed loop gets."""
    # Generated answers take seconds: in two of them none might end.
    duration_s = 2.0 if target.workload.generation is None else closed.duration_s
    plan = replace(closed, duration_s=duration_s, num_requests=None)
    return asyncio.run(run_closed_mode(target, traffic, plan)).requests_per_s / 2


def choose_modes(mode: str) -> list[str]:
    if mode == "all" and not is_installed():
        show("locust is not installed, so its run is left out")
        return [name for name in MODES if name != "locust"]
    if mode == "locust" and not is_installed():
        raise UsageError("--mode locust needs locust: pip install locust")
    return list(MODES) if mode == "all" else [mode]


def write_report(target: Target, results: list[Result], slo_ms: float, token_slo: TokenSlo | None) -> None:
    """Writes the files, then prints the table and what must be said about it."""
    info = fetch_json(f"{target.url}/info")
    workload = target.workload.model_dump(mode="json")
    description = describe_run(
        url=target.url, workload=workload, info=info, command=["python", "-m", "loadtest", *sys.argv[1:]]
    )
    limits = {"p99_ms": slo_ms} if token_slo is None else token_slo._asdict() | {"min_good_share": MIN_GOOD_SHARE}
    write_json(description | {"slo": limits}, target.out / "results.json")
    write_csv(results, target.out / "results.csv")
    title = f"{target.model}, {target.workload_path.stem}"
    write_plot(results, target.out / "results.png", slo_ms=slo_ms, token_slo=token_slo, title=title)
    notes = format_notes(results, find_best(results), slo_ms=slo_ms, token_slo=token_slo)
    show("\n".join(["", format_table(results), "", *notes, f"written: {target.out}/results.csv, .json and .png"]))


def run(args: argparse.Namespace) -> int:
    modes = choose_modes(args.mode)
    workload_path = find_workload(args.workload)
    prompts = find_prompts(args.prompts) if args.prompts else None
    workload = load_workload(workload_path, prompts)
    slo_ms, token_slo = choose_slo(args, workload)
    plans = build_plans(args, slo_ms=slo_ms, token_slo=token_slo)
    args.out.mkdir(parents=True, exist_ok=True)
    with open_server(args) as url:
        model = args.model or find_model(url)
        target = Target(url, model, workload_path, prompts, workload, args.out)
        show(f"{url}, model {model}, workload {workload_path.stem}")
        results = run_modes(target, modes, *plans)
        write_report(target, results, slo_ms, token_slo)
    if not all(any(row.requests_per_s > 0 for row in results if row.mode == mode) for mode in modes):
        raise UsageError("a mode got no answer at all: see the failures above")
    return 0


def main() -> int:
    # As an exception it unwinds the stack, and a server that was started here is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(parse_arguments())
    except (UsageError, WorkloadError, ServerError, LocustError, ValueError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
