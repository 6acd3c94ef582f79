"""What an engine makes of a device's errors: of memory, of the step, and the last of all. Injected into a kernel."""

import pytest
import torch

from runtime.backends.plain.table import TORCH_KERNELS
from runtime.build import describe
from runtime.capture import capture
from runtime.engine import DeviceLost, EngineError, OutOfMemory
from runtime.engines.cuda_graphs import CudaGraphsEngine
from runtime.engines.failures import explain_failure
from runtime.engines.planned import PlannedEngine
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.passes.pipeline import choose_precision
from tests.kernels.kernel_cases import find_backend
from tests.kernels.repeating import Repeating
from tests.kernels.tiny_graphs import CPU, Tiny, random_batch

LARGEST = BatchShape(64, 8, 32, 8)
LOST = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("Triton Error [CUDA]: out of memory"), OutOfMemory),
        (torch.AcceleratorError(LOST), DeviceLost),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), DeviceLost),
        (RuntimeError("Triton Error [CUDA]: device-side assert triggered"), DeviceLost),
        (RuntimeError("shape '[3]' is invalid for input of size 2"), EngineError),
        (ValueError("a sequence of 9 is over the reach"), EngineError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_are_told_apart(error: Exception, kind: type[EngineError]) -> None:
    found = explain_failure(error, "a step failed")
    assert type(found) is kind and str(found) == f"a step failed: {error}"


class FailingLinear:
    """The kernel of linear layers. Mutable: what it raises."""

    def __init__(self, op: object) -> None:
        self.kernel = TORCH_KERNELS[op]
        self.error: Exception | None = None

    def __call__(self, *args: object, **kwargs: object) -> None:
        if self.error is not None:
            raise self.error
        self.kernel(*args, **kwargs)


@pytest.fixture
def kernel() -> FailingLinear:
    return FailingLinear(torch.ops.aten.linear.default)


@pytest.fixture(params=["planned", "cuda_graphs"])
def engine(kernel: FailingLinear, request: pytest.FixtureRequest) -> PlannedEngine:
    backend = find_backend("torch")
    module = Tiny(lambda m, x, _: m.b(m.norm(m.a(x)))).eval().requires_grad_(False)
    program = lower(capture(module, CPU), backend.kernels)
    info = describe(program, choose_precision("fp32", backend), LARGEST, backend)
    kernels = {**backend.kernels, torch.ops.aten.linear.default: kernel}
    if request.param == "planned":
        return PlannedEngine(program, kernels, LARGEST, CPU, info, None)
    return CudaGraphsEngine(program, kernels, LARGEST, CPU, info, None, Repeating())


def test_a_step_without_memory_is_said_to_be_and_the_next_one_runs(
    engine: PlannedEngine, kernel: FailingLinear
) -> None:
    """An arena whose addresses nobody has learnt by heart is given back meanwhile."""
    engine.warmup(lambda *_: None)
    batch = random_batch([5, 3])
    expected = engine.run(batch).arrays["rows"]
    kernel.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(OutOfMemory, match="2 sequences failed: CUDA out of memory"):
        engine.run(batch)
    assert bool(engine.memory().arena_reserved_bytes) == isinstance(engine, CudaGraphsEngine)
    kernel.error = None
    assert (engine.run(batch).arrays["rows"] == expected).all()


def test_the_last_error_of_a_device_is_said_to_be(engine: PlannedEngine, kernel: FailingLinear) -> None:
    engine.warmup(lambda *_: None)
    kernel.error = torch.AcceleratorError(LOST)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        engine.run(random_batch([5, 3]))
