"""Locust users that post the texts of a workload: `python -m locust -f loadtest/locustfile.py --host URL`.

PADLESS_WORKLOAD names the workload (a name or a path), PADLESS_MODEL the model. Importing locust patches the standard
library (gevent), so nothing imports this file: `locust_run` starts it in a process of its own.
"""

import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.env import Environment

from loadtest.workloads import Workload, build_bodies, find_workload, load_workload


@cache
def read_workload() -> Workload:
    return load_workload(find_workload(os.environ.get("PADLESS_WORKLOAD", "lognormal")))


@cache
def read_bodies() -> "itertools.cycle[str]":
    """One endless run through the bodies, shared by all users of this process."""
    bodies = build_bodies(read_workload(), os.environ.get("PADLESS_MODEL", "default"))
    return itertools.cycle([body.decode() for body in bodies])


class EmbeddingUser(FastHttpUser):
    """Sends its next request as soon as it has its answer."""

    wait_time = constant(0)

    @task
    def embed(self) -> None:
        headers = {"Content-Type": "application/json"}
        self.client.post("/v1/embeddings", data=next(read_bodies()), headers=headers)


def write_totals(environment: Environment, **_: Any) -> None:
    """Writes what locust counted to the file PADLESS_TOTALS names: its own CSV files miss the last second."""
    total = environment.stats.total
    good_per_s = total.total_rps - total.total_fail_per_sec
    texts_per_s = good_per_s * read_workload().texts_per_request
    print(f"answered: {good_per_s:.1f} requests/s, {texts_per_s:.1f} texts/s")
    totals = {
        "requests": total.num_requests,
        "requests_per_s": good_per_s,
        "texts_per_s": texts_per_s,
        "percentiles_ms": [total.get_response_time_percentile(share) for share in (0.5, 0.95, 0.99, 0.999)],
        "failures": {str(failure.error): failure.occurrences for failure in environment.stats.errors.values()},
    }
    if path := os.environ.get("PADLESS_TOTALS"):
        Path(path).write_text(json.dumps(totals), encoding="utf-8")


events.quitting.add_listener(write_totals)  # type: ignore[no-untyped-call]  # locust leaves it untyped
