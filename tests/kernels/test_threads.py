"""An engine computes on as many threads as it was built for, whichever thread builds and whichever runs it."""

import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.limits import BatchLimits
from tests.kernels.kernel_cases import CONFIGURABLE
from tests.kernels.tiny_graphs import MAX_POSITIONS, captured_once, random_batch, tiny_bert

LIMITS = BatchLimits(max_batch_tokens=512, max_batch_requests=64, max_input_tokens=MAX_POSITIONS)


def build(implementation: str, num_threads: int) -> Engine:
    config = EngineConfig.model_validate(
        {"precision": "fp32", "cpu_kernels": implementation, "threads": num_threads}
        if implementation != "reference"
        else {"kind": "reference", "threads": num_threads}
    )
    with captured_once(tiny_bert):
        return build_engine(tiny_bert(), config, LIMITS, lambda *_: None)


def run_elsewhere(work: Callable[[], object]) -> int:
    """On a thread of its own. How many threads of the system's there are more at its end than at its beginning."""
    counts: list[int] = []

    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    def run() -> None:
        counts.append(count())
        work()
        counts.append(count())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return counts[1] - counts[0]


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("implementation", [*CONFIGURABLE, "reference"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_regions_run_on_the_threads_asked_for(implementation: str, num_threads: int) -> None:
    """A region's threads are made for the thread that runs it, at its first region."""
    engine = build(implementation, num_threads)
    torch.set_num_threads(2)  # as another engine of this process might
    batch = random_batch([MAX_POSITIONS] * 4)
    assert run_elsewhere(lambda: [engine.run(batch) for _ in range(3)]) == num_threads - 1
