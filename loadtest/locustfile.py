"""Locust users that post the requests of a workload: `python -m locust -f loadtest/locustfile.py --host URL`.

PADLESS_WORKLOAD names the workload (a name or a path), PADLESS_PROMPTS a file of prompts to take instead of its own,
PADLESS_MODEL the model. Importing locust patches the standard library (gevent), so nothing imports this file:
`locust_run` starts it in a process of its own.
"""

import itertools
import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.env import Environment

from loadtest.token_stream import TokenReader, Tokens
from loadtest.workloads import Workload, build_bodies, find_workload, load_workload

HEADERS = {"Content-Type": "application/json"}
EMBEDDINGS = "/v1/embeddings"


@cache
def read_workload() -> Workload:
    prompts = os.environ.get("PADLESS_PROMPTS")
    path = find_workload(os.environ.get("PADLESS_WORKLOAD", "lognormal"))
    return load_workload(path, Path(prompts) if prompts else None)


@cache
def read_bodies() -> "itertools.cycle[str]":
    """One endless run through the bodies, shared by all users of this process. From the end: the other modes begin at
    the start, and a server that keeps what it computed of a prompt must not have met it."""
    bodies = build_bodies(read_workload(), os.environ.get("PADLESS_MODEL", "default"))
    return itertools.cycle([body.decode() for body in reversed(bodies)])


class WorkloadUser(FastHttpUser):
    """Sends its next request as soon as it has its answer."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        generation = read_workload().generation
        if generation is None:
            self.client.post(EMBEDDINGS, data=next(read_bodies()), headers=HEADERS)
        else:
            self.generate(generation.route)

    def generate(self, route: str) -> None:
        """Besides the request, its time to first token and every inter-token latency become entries of their own."""
        reader, began_s = TokenReader(), time.perf_counter()
        body = next(read_bodies())
        with self.client.post(route, data=body, headers=HEADERS, stream=True, catch_response=True) as response:
            tokens = read_tokens(response, reader)
            # Locust itself stops the clock at the headers of a stream.
            response.request_meta["response_time"] = (time.perf_counter() - began_s) * 1000
        if tokens is not None:
            self.show("TTFT", route, tokens.first_s - began_s, size=tokens.num_tokens)
            for gap_s in tokens.gaps_s:
                self.show("ITL", route, gap_s)

    def show(self, kind: str, route: str, duration_s: float, size: int = 0) -> None:
        """Locust's statistics and charts take any entry as if it were a request; the size of TTFT is in tokens."""
        self.environment.events.request.fire(
            request_type=kind,
            name=route,
            response_time=duration_s * 1000,
            response_length=size,
            exception=None,
            context={},
        )


def read_tokens(response: ResponseContextManager, reader: TokenReader) -> Tokens | None:
    """The tokens of a stream that came whole; any other is marked as a failure, unless locust sees that by itself."""
    if not response.status_code:
        return None
    try:
        while line := response.stream.readline(b"\n"):
            reader.feed(bytes(line), time.perf_counter())
    except FAILURE_EXCEPTIONS as error:
        response.failure(type(error).__name__)  # type: ignore[no-untyped-call]
        return None
    if not 200 <= response.status_code < 300:
        return None
    tokens, problem = reader.finish()
    if problem:
        response.failure(problem)  # type: ignore[no-untyped-call]
    return tokens


def summarize(environment: Environment) -> dict[str, Any]:
    """What `locust_run` reads. Of the requests alone: in locust's total TTFT and ITL would count as some."""
    workload, stats = read_workload(), environment.stats
    route = EMBEDDINGS if workload.generation is None else workload.generation.route
    posts = stats.get(route, "POST")
    good_per_s = posts.total_rps - posts.total_fail_per_sec
    totals = {
        "requests": posts.num_requests,
        "requests_per_s": good_per_s,
        "texts_per_s": good_per_s * workload.texts_per_request,
        "percentiles_ms": [posts.get_response_time_percentile(share) for share in (0.5, 0.95, 0.99, 0.999)],
        "failures": {str(failure.error): failure.occurrences for failure in stats.errors.values()},
    }
    if workload.generation is None:
        return totals
    ttft, itl = stats.get(route, "TTFT"), stats.get(route, "ITL")
    return totals | {
        "tokens_per_s": ttft.total_rps * ttft.avg_content_length,
        "ttft_ms": [ttft.get_response_time_percentile(share) for share in (0.5, 0.95, 0.99)],
        "itl_ms": [itl.get_response_time_percentile(share) for share in (0.5, 0.95, 0.99)],
        "itl_max_ms": itl.max_response_time,
    }


def write_totals(environment: Environment, **_: Any) -> None:
    """Writes what locust counted to the file PADLESS_TOTALS names: its own CSV files miss the last second."""
    totals = summarize(environment)
    print(f"answered: {totals['requests_per_s']:.1f} requests/s, {totals['texts_per_s']:.1f} texts/s")
    if "tokens_per_s" in totals:
        print(f"generated: {totals['tokens_per_s']:.1f} tokens/s")
    if path := os.environ.get("PADLESS_TOTALS"):
        Path(path).write_text(json.dumps(totals), encoding="utf-8")


events.quitting.add_listener(write_totals)  # type: ignore[no-untyped-call]  # locust leaves it untyped
