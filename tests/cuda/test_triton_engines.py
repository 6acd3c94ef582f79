"""Whole models over Triton's kernels, from the passes to the results, against the modules in fp32."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from runtime.backends.backend import Backend
from runtime.backends.cuda.backend import PASSES
from runtime.backends.cuda.library import TRITON
from runtime.backends.cuda.ops import LINEAR_INT8_SUMMED
from runtime.backends.cuda.sum_weights import sum_weights
from runtime.backends.cuda.table import TRITON_KERNELS
from runtime.backends.plain.table import TORCH_KERNELS
from runtime.build import describe
from runtime.capture import capture, constant
from runtime.config import Precision
from runtime.engines.planned import PlannedEngine
from runtime.engines.transfer import to_tensors
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.ops.linear_int8 import OP as LINEAR_INT8
from runtime.passes.pipeline import choose_precision, list_passes
from runtime.passes.quantize import quantize
from runtime.passes.rewriting import read
from tests.cuda.cuda_cases import skip_without_fp8
from tests.kernels.tiny_graphs import CPU, Tiny, random_batch, rewrite, tiny_bert
from tests.tolerances import ENCODER_TOLERANCES, Tolerance, check_close

LARGEST = BatchShape(128, 16, 64, 16)
TOLERANCES = ENCODER_TOLERANCES | {"fp16": Tolerance(norm=3e-3, bound=2e-2)}
SEQLENS = [5, 1, 9]


def build_engine(make: Callable[[], nn.Module], precision: Precision, device: torch.device) -> PlannedEngine:
    backend = Backend(TRITON, device, TORCH_KERNELS | TRITON_KERNELS, PASSES, kv_order="rows")
    choice = choose_precision(precision, backend)
    graph_module = rewrite(capture(make().to(device), device), *list_passes(choice, backend))
    program = lower(graph_module, backend.kernels)
    info = describe(program, choice, LARGEST, backend)
    assert not info.unplanned_ops
    return PlannedEngine(program, backend.kernels, LARGEST, device, info, None)


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCES)
def test_an_encoder(precision: Precision, device: torch.device) -> None:
    skip_without_fp8(precision, device)
    batch = random_batch(SEQLENS)
    expected = tiny_bert()(**to_tensors(batch, CPU))
    found = build_engine(tiny_bert, precision, device).run(batch)
    (name,) = expected
    check_close(found.arrays[name], expected[name], tolerance=TOLERANCES[precision], what=precision)


def test_int8_layers_are_given_sums_and_aligned_weights() -> None:
    """Two layers that share a weight share those too, and the weight as it was is let go of."""

    def body(module: Tiny, rows: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([rows, rows[:, :8]], 1)
        return torch.cat([layer(wide) for layer in (module.narrow, module.narrow)], 1)

    module = Tiny(body)
    module.narrow = nn.Linear(40, 5)
    plain = ("quantize", lambda graph: quantize(graph, None, overflow_free=False))
    before = rewrite(capture(module.eval().requires_grad_(False), CPU), plain)
    (old,) = {read(node).weight.target for node in before.graph.find_nodes(op="call_function", target=LINEAR_INT8)}
    weight = before.get_buffer(old).clone()
    graph_module = rewrite(before, ("sum_weights", sum_weights))
    nodes = graph_module.graph.find_nodes(op="call_function", target=LINEAR_INT8_SUMMED.target)
    assert len(nodes) == 2 and len({(read(node).weight, read(node).column_sums) for node in nodes}) == 1
    call = read(nodes[0])
    padded = constant(graph_module, call.weight)
    assert torch.equal(padded[:, :40], weight) and padded.shape == (5, 48) and not padded[:, 40:].any()
    assert torch.equal(constant(graph_module, call.column_sums), weight.sum(1, dtype=torch.int32))
    assert not hasattr(graph_module, old)
