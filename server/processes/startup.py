"""What every process of ours does at its start: log lines, progress bars, and ending when its parent has."""

import asyncio
import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from tqdm import tqdm

from models.info import ModelDirectoryError
from runtime.config import UnusableConfig
from runtime.engine import Progress
from server.processes.child import HEARTBEAT_PERIOD_S

CANNOT_START = 2
"""Exit status of a child that would fail again: its configuration or its model cannot be used."""
CRASHED = 3
START_ANEW = 4
"""Of an engine process that was started too early to know that nothing was compiled which it could open."""
GC_THRESHOLD = 50_000
"""So many new objects before they are looked through. Python's 700 took a tenth of an HTTP process's time."""


def set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    # uvicorn's lines about starting and stopping say nothing that the supervisor's do not; the others are the hub's
    # clients, old and new, with a line for each of their requests.
    for name in ("uvicorn", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A warning for each form that is none: what clients send is no news to an operator.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def make_progress(name: str) -> Progress:
    """Bars on a terminal, one line per stage elsewhere."""
    bars: dict[str, tqdm[NoReturn]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            if done == 0:
                print(f"{name}: {stage} ...", file=sys.stderr, flush=True)
            return
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=f"{name}: {stage}", file=sys.stderr, leave=False)
        bars[stage].update(done - bars[stage].n)
        if done >= total:
            bars.pop(stage).close()

    return progress


def spare_garbage_collector() -> None:
    """To be called when all has been loaded: it stays, and to look through it takes longer than to parse the largest
    bodies. New objects are looked through less often: with 64 requests under way there are always thousands.

    What loading has left behind goes first, because what is frozen is never freed: captured graphs are cycles, and hold
    the weights as they were read, hundreds of megabytes of them.
    """
    gc.collect()
    return_free_memory()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def return_free_memory() -> None:
    """To the system, what the allocator keeps for later; where the C library is glibc."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def end_where_it_would_fail_again() -> Iterator[None]:
    """A model or a setting that cannot be used is told in one line, and ends the process as the supervisor understands
    it: to start it again would change nothing."""
    try:
        yield
    except (ModelDirectoryError, UnusableConfig) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(CANNOT_START)


def stay_with_parent(on_end: Callable[[], None], on_settled: Callable[[], None] = lambda: None) -> "asyncio.Task[None]":
    """Show the supervisor, which holds the other end of our standard input, that our event loop turns; call
    `on_settled` when it says that the deployment is, and `on_end` when it is gone. Needs a loop; keep what it returns.

    A supervisor that was killed before it had read our last beat resets the connection: libuv then stops watching it,
    and it is the next beat that finds out.
    """
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    async def beat() -> None:
        while True:
            try:
                os.write(stdin, b".")
            except BlockingIOError:
                pass  # it is stopped, and reads none; libuv has made the descriptor one that does not wait
            except OSError:
                end()
            await asyncio.sleep(HEARTBEAT_PERIOD_S)

    def check() -> None:
        try:
            is_settled = bool(os.read(stdin, 1))
        except ConnectionError:
            is_settled = False
        if is_settled:
            on_settled()
        else:
            end()

    def end() -> None:
        loop.remove_reader(stdin)
        heart.cancel()
        on_end()

    loop.add_reader(stdin, check)
    heart = asyncio.create_task(beat())
    return heart
