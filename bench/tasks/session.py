"""The worker's side where memory is asked for too. Linux tells a process's peak, and forgets it when told to."""

import ctypes
from pathlib import Path
from typing import Any

from bench.peers.protocol import Session

RESET_PEAK = "5"
"""proc(5), /proc/PID/clear_refs: the peak of the resident set becomes what it is now."""
PIECE_TOKENS = 16
"""At a time when the weights are touched: what is computed of so few takes hardly any memory."""


class MemorySession(Session):
    """`{"op": "peak", "batch_size": 8}  ->  {"peak_bytes": 1000000}`: of one run, above what the process held before.

    Before, all tokens of the workload have been there in small pieces: weights that are mapped from files, a row of the
    table of embeddings for each token, are in memory from then on.
    """

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] != "peak":
            return super().answer(request)
        assert self.embed is not None, "peak comes after load"
        starts = [(ids, start) for ids in self.sequences for start in range(0, len(ids), PIECE_TOKENS)]
        self.embed([[ids[start : start + PIECE_TOKENS]] for ids, start in starts])
        ctypes.CDLL(None).malloc_trim(0)  # what loading has freed would else count as held, and be used again
        base_bytes = read_status("VmRSS")
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        self.run(request["batch_size"])
        return {"peak_bytes": read_status("VmHWM") - base_bytes}


def read_status(name: str) -> int:
    """Bytes, of a line such as `VmRSS:   1024 kB`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
