"""Prepared kernels that run one after another in a single call: what `tape.cpp` plays."""

from collections.abc import Sequence

import numpy as np

from runtime.kernels.cpu.native import NativeCall


class Tape:
    """Runs calls of one library in their order, as often as their tensors get new contents."""

    def __init__(self, calls: Sequence[NativeCall]) -> None:
        assert all(call.is_lasting for call in calls), "A tape would read old copies. This is a bug."
        self.play = calls[0].kernel.play_tape
        self.calls = tuple(calls)
        encoded = [call.kernel.encode(call.args) for call in calls]
        self.words = np.frombuffer(b"".join(encoded), np.int64)
        starts = np.cumsum([0, *(len(words) for words in encoded[:-1])]) + self.words.ctypes.data
        players = [call.kernel.player for call in calls]
        self.entries = np.stack([np.array(players, np.int64), starts], axis=1)
        self.address = self.entries.ctypes.data

    def run(self) -> None:
        """Raises IndexError where a kernel's inputs are out of range; those behind it do not run."""
        failed = self.play(self.address, len(self.calls))
        if failed >= 0:
            self.calls[failed].run()  # finds the same and says it
            raise RuntimeError("A kernel has found wrong inputs, and then has not. This is a bug.")
