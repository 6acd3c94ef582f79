"""The options of the command line, and what they make of the two loops. Runs nothing."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest.closed_loop import Closed
from loadtest.open_loop import Step, Sweep
from loadtest.slo import TokenSlo
from loadtest.workloads import Workload, mean_output_tokens

MODES = ("locust", "closed", "sweep")
SLO_MS = 200.0


class UsageError(Exception):
    """Something the command line got wrong; the message is for the user."""


class Lengths(NamedTuple):
    """Of the runs, in seconds, and of the sweep, in rates."""

    duration_s: float
    warmup_s: float
    timeout_s: float
    max_rates: int
    precision: float


EMBEDDING, EMBEDDING_SHORT = Lengths(10, 2, 10, 12, 0.05), Lengths(3, 1, 5, 7, 0.1)
# An answer takes seconds, so as many must pass before as many answers are under way as will be.
GENERATION, GENERATION_SHORT = Lengths(30, 5, 60, 10, 0.05), Lengths(8, 3, 20, 5, 0.2)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description="Load tests over HTTP; see README.md here.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8000", help="a server that runs (default: %(default)s)")
    where.add_argument(
        "--serve", metavar="FILE", help="start the server with this configuration, and stop it at the end"
    )
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all", help="what to run (default: %(default)s)")
    add_traffic_options(parser)
    add_length_options(parser)
    parser.add_argument("--model", help="model name to send (default: the first that /v1/models lists)")
    parser.add_argument("--out", type=Path, default=Path("loadtest/results"), help="folder (default: %(default)s)")
    return parser.parse_args(arguments)


def add_traffic_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", default="lognormal", help="name or path of a YAML file (default: %(default)s)")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="texts instead of generated ones: a line each, or in a .jsonl file a field `text` each; or `sharegpt`",
    )
    parser.add_argument("--slo-ms", type=positive, help=f"embeddings: limit for p99 (default: {SLO_MS:g})")
    parser.add_argument(
        "--slo",
        type=limits,
        metavar="LIMITS",
        help=f"generation: limits of a good request, for time to first token and mean inter-token latency "
        f"(default: {TokenSlo()})",
    )


def add_length_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--duration",
        type=positive,
        help="seconds counted per run and per rate (default: 10, generation 30; short: 3, generation 8)",
    )
    parser.add_argument(
        "--warmup",
        type=float,
        help="seconds not counted before each (default: 2, generation 5; short: 1, generation 3)",
    )
    parser.add_argument(
        "--connections", type=natural, default=64, help="of the closed loop and locust (default: %(default)s)"
    )
    parser.add_argument("--requests", type=natural, help="closed loop: send this many instead of for a time")
    parser.add_argument("--rate", type=positive, help="first rate of the sweep (default: half of the closed loop's)")
    parser.add_argument(
        "--repeats", type=natural, default=1, help="runs per rate, the majority decides (default: %(default)s)"
    )
    parser.add_argument("--short", action="store_true", help="everything small: under 90 s in all, generation 3 min")


def positive(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def limits(text: str) -> TokenSlo:
    try:
        return TokenSlo.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def choose_slo(args: argparse.Namespace, workload: Workload) -> tuple[float, TokenSlo | None]:
    """What an answer may take in all, and for generation what its tokens may. Raises UsageError."""
    if workload.generation is None:
        if args.slo is not None:
            raise UsageError("--slo is for workloads that generate; here give --slo-ms")
        return args.slo_ms or SLO_MS, None
    if args.slo_ms is not None:
        raise UsageError("--slo-ms is for embeddings; here give --slo, as in --slo ttft=500ms,itl=100ms")
    slo = args.slo or TokenSlo()
    return slo.allowed_total_ms(mean_output_tokens(workload)), slo


def build_plans(args: argparse.Namespace, *, slo_ms: float, token_slo: TokenSlo | None) -> tuple[Closed, Sweep]:
    """The two loops at the length that was asked for. The sweep's first rate is known only once the closed loop ran."""
    if token_slo is None:
        usual = EMBEDDING_SHORT if args.short else EMBEDDING
    else:
        usual = GENERATION_SHORT if args.short else GENERATION
    duration_s = args.duration or usual.duration_s
    warmup_s = usual.warmup_s if args.warmup is None else args.warmup
    closed = Closed(
        connections=args.connections,
        duration_s=duration_s,
        warmup_s=warmup_s,
        num_requests=args.requests,
        timeout_s=usual.timeout_s,
        slo_ms=slo_ms,
        token_slo=token_slo,
    )
    step = Step(
        rate=args.rate or math.nan,
        duration_s=duration_s,
        warmup_s=warmup_s,
        slo_ms=slo_ms,
        token_slo=token_slo,
        timeout_s=usual.timeout_s,
    )
    return closed, Sweep(step=step, precision=usual.precision, max_rates=usual.max_rates, repeats=args.repeats)
