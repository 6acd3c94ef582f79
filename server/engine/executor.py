"""What runs steps: today one thread that owns an engine; a group of processes would fit as well.

The engine loop knows no more of engines than stands here.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Protocol, TypeVar

from runtime.batch import Output
from runtime.engine import Engine, EngineError, EngineInfo, MemoryStats
from server.engine.batchers.batcher import AnyStep, Run, StepResult
from server.engine.core_lease import KEEP_S, CoreLease

logger = logging.getLogger("padless.engine")

Built = TypeVar("Built")
OnResult = Callable[[StepResult[AnyStep]], None]


def run_in_passing_thread(function: Callable[[], Built]) -> Built:
    """On a thread that ends with it: for building and warming up an engine that another thread is going to run.

    Each thread that has ever computed keeps helpers, as long as it lives; once OpenMP's are more than there are cores,
    all of them sleep at every wait, and a step of 2 ms takes 6 (docs/decisions/0014).
    """
    with ThreadPoolExecutor(1, "passing") as pool:
        return pool.submit(function).result()


def pin_thread(cores: Set[int]) -> None:
    """Keep the calling thread, and those that it starts, on these cores; none: on any.

    The event loop's thread stays free to run elsewhere: beside a thread that computes, it took 3 % of its time. Only a
    generator's with one core runs there too: it works while the other waits, and finds in the core's caches what that
    has just left there.
    """
    if cores:
        os.sched_setaffinity(0, cores)


class Executor(Protocol[AnyStep]):
    """Runs steps in the order they are submitted."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def turn_s(self) -> float:
        """No step that runs began before: when the device was last given to us; while a step waits for that, now."""

    def start(self, on_result: OnResult[AnyStep]) -> None:
        """`on_result` is called on a thread of the executor's own, once for each step, in their order."""

    def submit(self, step: AnyStep) -> None: ...

    def interrupt(self) -> None:
        """Somebody waits for the next step: those that were submitted, and could go on by themselves, end."""

    def memory(self) -> MemoryStats: ...

    def trim(self) -> None:
        """Give back memory that has long not been needed. Nothing is running."""

    def stop(self) -> None:
        """Finish what was submitted, then end. Blocks."""


class DeviceThread(Executor[AnyStep]):
    """The one thread that owns an engine, on `cores`. `lease`: those that it shares with engines of other processes.

    Mutable: the queue of steps, whether the next of them waits for its turn on the cores, and whether somebody waits
    for another.
    """

    def __init__(
        self, engine: Engine, name: str, lease: CoreLease | None = None, cores: Set[int] = frozenset()
    ) -> None:
        self.engine = engine
        self.lease = lease
        self.cores = cores
        self.steps: SimpleQueue[AnyStep | None] = SimpleQueue()
        self.is_waiting = False
        self.is_interrupted = False
        self.name = name
        self.thread: threading.Thread | None = None

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @property
    def turn_s(self) -> float:
        if self.lease is None:
            return 0.0
        return monotonic() if self.is_waiting else self.lease.turn_s

    def start(self, on_result: OnResult[AnyStep]) -> None:
        self.thread = threading.Thread(target=self.work, args=(on_result,), name=self.name, daemon=True)
        self.thread.start()

    def submit(self, step: AnyStep) -> None:
        if not step.is_canary:  # one may come beside a step that goes on
            self.is_interrupted = False
        self.steps.put(step)

    def interrupt(self) -> None:
        self.is_interrupted = True

    def memory(self) -> MemoryStats:
        return self.engine.memory()

    def trim(self) -> None:
        self.engine.trim()

    def stop(self) -> None:
        self.steps.put(None)
        if self.thread is not None:
            self.thread.join()
        if self.lease is not None:
            self.lease.close()
        self.engine.close()

    def work(self, on_result: OnResult[AnyStep]) -> None:
        pin_thread(self.cores)
        while (step := self.next_step()) is not None:
            on_result(self.run(step))

    def next_step(self) -> AnyStep | None:
        """None: there will be no more."""
        if self.lease is not None and self.lease.is_kept:
            try:
                return self.steps.get(timeout=KEEP_S)
            except Empty:
                self.lease.give_back()
        return self.steps.get()

    def run(self, step: AnyStep) -> StepResult[AnyStep]:
        started_s = monotonic()
        output: Output | None = None
        error: Exception | None = None
        following: tuple[Run, ...] = ()
        try:
            with self.turn(step):
                started_s = monotonic()
                output = self.engine.run(step.batch)
                following = self.go_on(step, output, started_s)
        except Exception as failure:  # whatever it was, the jobs of this step must hear of it
            output, error = None, failure
        return StepResult(step, started_s, monotonic(), output, error, following)

    def go_on(self, step: AnyStep, output: Output, started_s: float) -> tuple[Run, ...]:
        """By what the step itself knows, until somebody waits for another step, or for the cores. What fails is left to
        the next step, which begins with the same."""
        runs = [Run(range(step.batch.num_seqs), step.batch, output)]
        try:
            while not self.is_interrupted and not (self.lease is not None and self.lease.is_awaited):
                following = step.follow(runs, monotonic() - started_s)
                if following is None:
                    break
                runs.append(Run(*following, self.engine.run(following[1])))
        except EngineError:
            pass
        except Exception:
            logger.exception("what follows on a step could not be computed")
        return tuple(runs[1:])

    @contextmanager
    def turn(self, step: AnyStep) -> Iterator[None]:
        """On the cores, where they are shared. Raises OSError."""
        if self.lease is None:
            yield
            return
        self.is_waiting = True
        try:
            self.lease.acquire(step.predicted_s)
        finally:
            self.is_waiting = False
        try:
            yield
        finally:
            self.lease.end_step()
