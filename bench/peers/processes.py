"""The parent's side: a worker is a process that answers one JSON line with another."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.whole_folders import filling
from server.processes.launch import SPIN_COUNT, SPIN_VARIABLE

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerError(RuntimeError):
    """A worker cannot do what it was asked for; the text is the reason in one line."""


class WorkerProcess:
    """One variant of a peer, alone in a process. Its output goes to `log`."""

    def __init__(self, python: Path, worker: Path, environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [str(python), str(worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=dict(environment),
            )

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises WorkerError."""
        try:
            print(json.dumps({"op": op, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the worker ended with {self.process.wait()}: {read_last_line(self.log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(" ".join(answer["error"].split()))
        return answer

    def close(self) -> None:
        """End the process: kindly, by closing its input, and else by a signal."""
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def build_environment(threads: int, cache: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, with the thread count in every variable that libraries read, no model hub, and the server's way to wait."""
    return {
        SPIN_VARIABLE: SPIN_COUNT,
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        **extra,
    }


def convert(python: Path, worker: Path, model: Path, out: Path, cache: Path, extra: Mapping[str, str]) -> None:
    """Let a worker fill `out`, unless it is there already. Raises WorkerError."""
    if out.exists():
        return
    log = cache / "logs" / f"convert-{out.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with filling(out) as unfinished, log.open("w") as stream:
        ended = subprocess.run(
            [str(python), str(worker), "convert", str(model), str(unfinished)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=build_environment(os.cpu_count() or 1, cache, extra),
        )
        if ended.returncode:
            raise WorkerError(f"conversion failed: {read_last_line(log)}")


def read_last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
