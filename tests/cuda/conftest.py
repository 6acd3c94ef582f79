"""Where Triton's kernels are tested: in its interpreter, and on a device where there is one."""

from collections.abc import Iterator

import pytest
import torch

from tests.cuda.interpreting import interpreted

ON_DEVICE = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["interpreted", pytest.param("cuda", marks=ON_DEVICE)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """What tensors have to be on. While a test has it, launchers of imported modules take them from there."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with interpreted():
        yield torch.device("cpu")
