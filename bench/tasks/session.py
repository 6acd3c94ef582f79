"""The worker's side where memory is asked for too. Linux tells a process's peak, and forgets it when told to."""

from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.protocol import Load, Session

RESET_PEAK = "5"
"""proc(5), /proc/PID/clear_refs: the peak of the resident set becomes what it is now."""
SHORT = np.array([101, 2000, 102], np.int32)


class MemorySession(Session):
    """`{"op": "peak", "batch_size": 8}  ->  {"peak_bytes": 1000000}`: one run of the workload, above `base_bytes`.

    Mutable besides what a Session is: the resident set once the weights are there, after a text of three tokens.
    """

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.base_bytes = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] != "peak":
            return super().answer(request)
        assert self.embed is not None, "peak comes after load"
        self.embed([[SHORT]])
        self.base_bytes = read_status("VmRSS")
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        self.run(request["batch_size"])
        return {"peak_bytes": read_status("VmHWM") - self.base_bytes}


def read_status(name: str) -> int:
    """Bytes, of a line such as `VmRSS:   1024 kB`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
