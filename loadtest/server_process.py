"""Starts the server under test as a subprocess on a free port, waits until it is ready, and stops it by SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtest.client import fetch

POLL_S = 0.2
MAX_STOP_S = 30.0
NUM_LOG_LINES = 15


class ServerError(Exception):
    """The server did not start or stop; the message is for the user."""


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(config: str, *, log: Path, ready_timeout_s: float = 300.0, settings: Sequence[str] = ()) -> Iterator[str]:
    """A running server of this configuration with `settings` changed, KEY=VALUE each; gives its URL.

    Whatever happens inside, it is stopped at the end.
    """
    port = find_free_port()
    command = [sys.executable, "-m", "server", "--config", config]
    for setting in (f"server.port={port}", *settings):
        command += ["--set", setting]
    with log.open("w") as stream:
        # A group of its own: Ctrl-C must reach us first, and a server that hangs is ended with its children.
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url, log, ready_timeout_s)
            yield url
        finally:
            stop(process, log)


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while fetch(f"{url}/ready") is None:
        if process.poll() is not None:
            raise ServerError(
                f"the server ended with status {process.returncode} before it was ready:\n{read_tail(log)}"
            )
        if time.monotonic() > end_s:
            raise ServerError(f"the server was not ready after {timeout_s:g} s:\n{read_tail(log)}")
        time.sleep(POLL_S)


def stop(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """SIGTERM, as in production; an error if the server does not end by itself in time."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(MAX_STOP_S)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise ServerError(f"the server ignored SIGTERM for {MAX_STOP_S:g} s and was killed; see {log}") from error


def read_tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:])
