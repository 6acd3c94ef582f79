"""A process that the supervisor keeps alive, and how it is known to be alive.

Its standard input is a socket whose other end the supervisor holds. The child writes to it as long as its event loop
turns, and reads from it the supervisor's end, should that be killed; and before that, where it has to wait for it, a
byte once the deployment is settled.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

HEARTBEAT_PERIOD_S = 0.5
HEARTBEAT_PATIENCE_S = 6.0
"""A child that has once been heard and is silent for so long is stopped, or its loop is stuck."""
WATCH_PERIOD_S = 0.5
ROOT = Path(__file__).parents[2]
"""Children run the code that the supervisor runs, from whatever folder it was started in."""


def build_command(module: str, arguments: Sequence[str]) -> list[str]:
    """-P: a folder called `server` where the user happens to stand is not ours."""
    return [sys.executable, "-P", "-m", module, *arguments]


def build_environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@dataclass(slots=True)
class Child:
    """`module` is run with `arguments`, and at last how often it has been started.

    Mutable: `process`, the current incarnation, `num_starts`, when it was heard, and whether it is to end.
    """

    name: str
    module: str
    arguments: list[str]
    pass_fds: tuple[int, ...] = ()
    worker: int | None = None
    """For HTTP workers: their slot in the admission files."""
    model: int | None = None
    """For engines: the number of their model."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its environment, beside those that all processes have."""
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has been heard for the first time: its imports are behind it."""
    settled: asyncio.Event | None = None
    """For those that start before it is settled what they are to do: they are told when it is."""
    process: asyncio.subprocess.Process | None = None
    num_starts: int = 0
    last_heard_s: float | None = None
    is_ending: bool = False

    async def run(self, on_hang: Callable[["Child"], None]) -> int:
        """One incarnation, from its start to its end. Returns its exit status. Raises OSError."""
        self.num_starts += 1
        self.last_heard_s = None
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.process = await asyncio.create_subprocess_exec(
                    *build_command(self.module, [*self.arguments, str(self.num_starts)]),
                    stdin=theirs.fileno(),
                    pass_fds=self.pass_fds,
                    process_group=0,
                    env={**build_environment(), **self.variables},
                )
            if self.is_ending:  # so it was told while it was being started
                self.process.terminate()
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, self.hear, ours)
            tasks = [asyncio.create_task(self.watch(on_hang)), asyncio.create_task(self.tell(ours))]
            try:
                return await self.process.wait()
            finally:
                for task in tasks:
                    task.cancel()
                loop.remove_reader(ours)

    def terminate(self) -> None:
        """SIGTERM, also to one that is just being started."""
        self.is_ending = True
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()

    async def tell(self, ours: socket.socket) -> None:
        if self.settled is not None:
            await self.settled.wait()
            with suppress(OSError):
                ours.send(b".")

    def hear(self, ours: socket.socket) -> None:
        try:
            if ours.recv(4096):
                self.last_heard_s = monotonic()
                self.heard.set()
            else:  # it is ending
                asyncio.get_running_loop().remove_reader(ours)
        except OSError:
            return

    async def watch(self, on_hang: Callable[["Child"], None]) -> None:
        assert self.process is not None
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self.last_heard_s is not None and monotonic() - self.last_heard_s > HEARTBEAT_PATIENCE_S:
                on_hang(self)
                self.process.kill()
                return
