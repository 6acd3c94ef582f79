"""A child of the supervisor ends with it, however that came to its end, and waits for one that stands still."""

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

CHILD = """
import asyncio
import uvloop
from server.processes.startup import stay_with_parent

async def main():
    ended = asyncio.Event()
    heart = stay_with_parent(ended.set, lambda: print("settled", flush=True))
    await ended.wait()
    heart.cancel()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@contextmanager
def start_child(*, is_full: bool = False) -> Iterator[tuple["subprocess.Popen[str]", socket.socket]]:
    """It, and the supervisor's end of its standard input. `is_full`: that has room for no beat more."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            if is_full:
                theirs.setblocking(False)
                with suppress(BlockingIOError):
                    while True:
                        theirs.send(b".")
                theirs.setblocking(True)
            command = [sys.executable, "-c", CHILD]
            child = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.PIPE, text=True)
        with child:
            ours.settimeout(30)
            try:
                yield child, ours
            finally:
                child.kill()


@pytest.mark.parametrize("has_read", [True, False], ids=["read", "unread"])
def test_a_supervisor_that_is_gone(has_read: bool) -> None:
    """Killed before it had read the last beat, it resets the connection; else it closes it."""
    with start_child() as (child, ours):
        assert ours.recv(1, 0 if has_read else socket.MSG_PEEK) == b"."
        ours.close()
        assert child.wait(20) == 0


def test_a_supervisor_that_stands_still_for_minutes() -> None:
    """The beats fill the connection; the child's loop turns all the same, as it shows by what it is told."""
    with start_child(is_full=True) as (child, ours):
        ours.send(b".")
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], 30)[0], "it hears nothing"
        assert child.stdout.readline() == "settled\n"
