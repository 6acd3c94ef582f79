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
from loadtest.report import describe_run, format_line, format_notes, format_table, write_csv, write_json, write_plot
from loadtest.server_process import ServerError, serve
from loadtest.workloads import Workload, WorkloadError, build_bodies, find_workload, load_workload

MODES = ("locust", "closed", "sweep")


class UsageError(Exception):
    """Something the command line got wrong; the message is for the user."""


@dataclass(frozen=True)
class Target:
    """Where the load goes, and what it is."""

    url: str
    model: str
    workload_path: Path
    workload: Workload
    out: Path


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description="Load tests over HTTP; see README.md here.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8000", help="a server that runs (default: %(default)s)")
    where.add_argument(
        "--serve", metavar="FILE", help="start the server with this configuration, and stop it at the end"
    )
    parser.add_argument("--workload", default="lognormal", help="name or path of a YAML file (default: %(default)s)")
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all", help="what to run (default: %(default)s)")
    parser.add_argument("--slo-ms", type=positive, default=200.0, help="limit for p99 (default: %(default)s)")
    parser.add_argument(
        "--duration", type=positive, help="seconds counted per run and per rate (default: 10; short: 3)"
    )
    parser.add_argument("--warmup", type=float, help="seconds not counted before each (default: 2; short: 1)")
    parser.add_argument(
        "--connections", type=natural, default=64, help="of the closed loop and locust (default: %(default)s)"
    )
    parser.add_argument("--requests", type=natural, help="closed loop: send this many instead of for a time")
    parser.add_argument("--rate", type=positive, help="first rate of the sweep (default: half of the closed loop's)")
    parser.add_argument(
        "--repeats", type=natural, default=1, help="runs per rate, the majority decides (default: %(default)s)"
    )
    parser.add_argument("--model", help="model name to send (default: the first that /v1/models lists)")
    parser.add_argument("--out", type=Path, default=Path("loadtest/results"), help="folder (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="everything small: under 90 s in all")
    return parser.parse_args(arguments)


def positive(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def build_plans(args: argparse.Namespace) -> tuple[Closed, Sweep]:
    """The two loops at the length that was asked for. The sweep's first rate is known only once the closed loop ran."""
    short = args.short
    duration_s = args.duration or (3.0 if short else 10.0)
    warmup_s = args.warmup if args.warmup is not None else (1.0 if short else 2.0)
    timeout_s = 5.0 if short else 10.0
    closed = Closed(
        connections=args.connections,
        duration_s=duration_s,
        warmup_s=warmup_s,
        num_requests=args.requests,
        timeout_s=timeout_s,
        slo_ms=args.slo_ms,
    )
    step = Step(
        rate=args.rate or math.nan, duration_s=duration_s, warmup_s=warmup_s, slo_ms=args.slo_ms, timeout_s=timeout_s
    )
    sweep = Sweep(step=step, precision=0.1 if short else 0.05, max_rates=7 if short else 12, repeats=args.repeats)
    return closed, sweep


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


async def run_closed_mode(target: Target, plan: Closed) -> Result:
    client = Client(target.url)
    result = await measure_closed(client, build_traffic(client, target), plan)
    await client.abort()
    return result


async def run_sweep_mode(target: Target, sweep: Sweep) -> list[Result]:
    client = Client(target.url)
    traffic = build_traffic(client, target)

    async def measure_at(step: Step) -> Result:
        result = await measure_step(client, traffic, step)
        show(format_line(result))
        return result

    results = await run_sweep(measure_at, sweep)
    await client.abort()
    return results


def build_traffic(client: Client, target: Target) -> Traffic:
    requests = [client.encode(body) for body in build_bodies(target.workload, target.model)]
    return Traffic(target.workload_path.stem, requests, target.workload.texts_per_request)


def run_locust_mode(target: Target, plan: Closed) -> Result:
    run = LocustRun(
        url=target.url,
        workload=target.workload_path,
        model=target.model,
        out=target.out,
        users=plan.connections,
        duration_s=plan.duration_s,
    )
    return run_locust(run)


def run_modes(target: Target, modes: Sequence[str], closed: Closed, sweep: Sweep) -> list[Result]:
    """Runs the modes one after the other; each result is shown as soon as it is there."""
    results = []
    if "locust" in modes:
        results.append(run_locust_mode(target, closed))
        show(format_line(results[-1]))
    if "closed" in modes:
        results.append(asyncio.run(run_closed_mode(target, closed)))
        show(format_line(results[-1]))
    if "sweep" in modes:
        rate = sweep.step.rate
        if math.isnan(rate):
            rate = results[-1].requests_per_s / 2 if results else probe_rate(target, closed)
        if not rate:
            show("sweep: left out, for the server answered nothing")
            return results
        results += asyncio.run(run_sweep_mode(target, replace(sweep, step=replace(sweep.step, rate=rate))))
    return results


def probe_rate(target: Target, closed: Closed) -> float:
    """Where a sweep begins when nothing is known of the server: half of what a short closed loop gets."""
    plan = replace(closed, duration_s=2.0, num_requests=None)
    return asyncio.run(run_closed_mode(target, plan)).requests_per_s / 2


def choose_modes(mode: str) -> list[str]:
    if mode == "all" and not is_installed():
        show("locust is not installed, so its run is left out")
        return [name for name in MODES if name != "locust"]
    if mode == "locust" and not is_installed():
        raise UsageError("--mode locust needs locust: pip install locust")
    return list(MODES) if mode == "all" else [mode]


def write_report(target: Target, results: list[Result], slo_ms: float) -> None:
    """Writes the files, then prints the table and what must be said about it."""
    info = fetch_json(f"{target.url}/info")
    workload = target.workload.model_dump(mode="json")
    write_json(
        describe_run(url=target.url, workload=workload, info=info, command=["python", "-m", "loadtest", *sys.argv[1:]]),
        target.out / "results.json",
    )
    write_csv(results, target.out / "results.csv")
    title = f"{target.model}, {target.workload_path.stem}"
    write_plot(results, target.out / "results.png", slo_ms=slo_ms, title=title)
    lines = [format_table(results), "", *format_notes(results, find_best(results), slo_ms=slo_ms)]
    show("\n".join(["", *lines, f"written: {target.out}/results.csv, .json and .png"]))


def run(args: argparse.Namespace) -> int:
    modes = choose_modes(args.mode)
    workload_path = find_workload(args.workload)
    workload = load_workload(workload_path)
    args.out.mkdir(parents=True, exist_ok=True)
    with open_server(args) as url:
        model = args.model or find_model(url)
        target = Target(url, model, workload_path, workload, args.out)
        show(f"{url}, model {model}, workload {workload_path.stem}")
        results = run_modes(target, modes, *build_plans(args))
        write_report(target, results, args.slo_ms)
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
