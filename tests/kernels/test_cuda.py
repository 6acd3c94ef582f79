"""The same program on a CUDA device, by Triton's kernels and torch's."""

import numpy as np
import pytest
import torch

from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.limits import BatchLimits
from tests.kernels.tiny_graphs import Tiny, random_batch
from tests.tolerances import check_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BATCH = random_batch([5, 1, 9, 9])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build(precision: str, device: str) -> Engine:
    module = Tiny(lambda m, x, cu_seqlens: m.norm(m.b(torch.nn.functional.gelu(m.a(x))) + x)[cu_seqlens[:-1].long()])
    config = EngineConfig.model_validate({"precision": precision, "device": device})
    return build_engine(module, config, BatchLimits(64, 16, 32), lambda *_: None)


@pytest.mark.parametrize("precision", DTYPES)
def test_cuda_agrees_with_the_cpu(precision: str) -> None:
    engine = build(precision, "cuda")
    engine.warmup(lambda *_: None)
    expected = build("fp32", "cpu").run(BATCH).arrays["embeddings"]
    actual = engine.run(BATCH).arrays["embeddings"]
    assert np.isfinite(actual).all()
    check_close(actual, expected, DTYPES[precision])
