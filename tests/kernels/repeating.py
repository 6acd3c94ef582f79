"""A stand-in for CUDA graphs, where there is no device."""

from collections.abc import Callable

from runtime.engines.cuda_graphs import Outputs, Step


class Repeating:
    """In place of CudaRecorder: runs a recorded step again. Mutable: how often, and how many steps can be recorded."""

    def __init__(self, most: int = 1000) -> None:
        self.num_replays = 0
        self.room = most

    def record(self, step: Step) -> tuple[Callable[[], None], Outputs]:
        if not self.room:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.room -= 1
        outputs = step()

        def replay() -> None:
            self.num_replays += 1
            for name, values in step().items():
                assert values.data_ptr() == outputs[name].data_ptr(), "The arena has moved."

        return replay, outputs
