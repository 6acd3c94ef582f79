"""The lease between real processes: never two inside, whoever dies or hangs inside, and those who wait sleep."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from server.engine.core_lease import LEAST_TERM_S, CoreLease

SHARES = (1.0, 1.0)
PATIENCE_S = 30.0
WORKER = """
import sys, time
from pathlib import Path
from server.engine.core_lease import CoreLease

path, seat, num_steps, step_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
lease = CoreLease(path, (1.0, 1.0), seat)
print("open", flush=True)
sys.stdin.readline()
for _ in range(num_steps):
    lease.acquire(step_s)
    begin_s = time.monotonic()
    print("in", flush=True)
    time.sleep(step_s)
    print(begin_s, time.monotonic(), flush=True)
    lease.end_step()
lease.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lease-0"


@contextmanager
def start_worker(path: Path, seat: int, num_steps: int, step_s: float) -> Iterator["subprocess.Popen[str]"]:
    """With its lease open, waiting for a line."""
    command = [sys.executable, "-c", WORKER, *map(str, (path, seat, num_steps, step_s))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert read(process) == "open"
            yield process
        finally:
            process.kill()


def let_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def read(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_are_never_both_inside(path: Path) -> None:
    with start_worker(path, 0, 100, 0.003) as first, start_worker(path, 1, 100, 0.005) as second:
        let_go(first)
        let_go(second)
        outputs = [process.communicate(timeout=PATIENCE_S)[0].splitlines() for process in (first, second)]
    steps = [[tuple(map(float, line.split())) for line in output if line != "in"] for output in outputs]
    assert [len(each) for each in steps] == [100, 100]
    both = sorted(step for each in steps for step in each)
    assert all(end_s <= begin_s for (_, end_s), (begin_s, _) in itertools.pairwise(both))
    assert steps[0][0] < steps[1][-1] and steps[1][0] < steps[0][-1]


def test_a_killed_holder_frees_it(path: Path) -> None:
    lease = CoreLease(path, SHARES, 1)
    with start_worker(path, 0, 1, 1000.0) as holder:
        let_go(holder)
        assert read(holder) == "in"
        holder.kill()
        holder.wait()
        killed_s = monotonic()
        lease.acquire(0.001)
        assert monotonic() - killed_s < LEAST_TERM_S
    lease.close()


def test_one_that_is_killed_while_it_waits_holds_up_nobody(path: Path) -> None:
    lease = CoreLease(path, SHARES, 1)
    lease.acquire(0.001)
    with start_worker(path, 0, 1, 0.001) as waiting:
        let_go(waiting)
        wait_until_asked(lease, 0)
        waiting.kill()
        waiting.wait()
    lease.end_step()
    started_s = monotonic()
    lease.acquire(0.001)
    assert monotonic() - started_s < LEAST_TERM_S
    lease.close()


def test_a_stopped_holder_holds_up_others_for_a_term(path: Path) -> None:
    lease = CoreLease(path, SHARES, 1)
    with start_worker(path, 0, 1, 0.1) as holder:
        let_go(holder)
        assert read(holder) == "in"
        holder.send_signal(signal.SIGSTOP)
        started_s = monotonic()
        lease.acquire(10.0)
        assert LEAST_TERM_S / 2 < monotonic() - started_s < 10 * LEAST_TERM_S
        holder.send_signal(signal.SIGCONT)
        holder.communicate(timeout=PATIENCE_S)
        assert lease.turns.holds(1)  # what it gave back was not its own any more
    lease.close()


def test_a_seat_is_taken_again_after_a_kill(path: Path) -> None:
    for _ in range(2):
        with start_worker(path, 0, 2, 0.2) as worker:
            let_go(worker)
            assert read(worker) == "in"
            worker.kill()


def test_waiting_takes_no_processor_time(path: Path) -> None:
    lease, other = CoreLease(path, SHARES, 0), CoreLease(path, SHARES, 1)
    lease.acquire(1.0)
    waiter = threading.Thread(target=other.acquire, args=(1.0,))
    before_s = time.process_time()
    waiter.start()
    time.sleep(0.4)
    used_s = time.process_time() - before_s
    lease.end_step()
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    assert used_s < 0.05


def wait_until_asked(lease: CoreLease, seat: int) -> None:
    until_s = monotonic() + PATIENCE_S
    while seat not in lease.turns.list_waiting():
        assert monotonic() < until_s
        time.sleep(0.001)
