"""Rows by their numbers: the kernel against its reference, and which lookups become one."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from runtime.ops import gather
from runtime.passes.fuse_gather import fuse_gather
from runtime.passes.rewriting import is_call, read
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import DTYPES, KERNEL_TOLERANCES, find_kernels, random_tensor, run_kernel
from tests.kernels.tiny_graphs import (
    Body,
    Tiny,
    capture_body,
    count_calls,
    random_batch,
    rewrite,
    run_graph,
)
from tests.tolerances import check_close

BATCH = random_batch([5, 1, 9])
compiled = pytest.mark.skipif(not COMPILED, reason="a CPU without AVX2")


@compiled
@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scale", "has_residual"), [(1.0, False), (22.6, False), (1.0, True), (-0.5, True)])
def test_rows(scale: float, has_residual: bool, dtype: torch.dtype, isa: str) -> None:
    table, index = random_tensor(11, 33, dtype=dtype), torch.arange(600) * 3 % 11
    residual = random_tensor(600, 33, seed=1, dtype=dtype) if has_residual else None
    actual = run_kernel(find_kernels(isa)[gather.OP], (600, 33), dtype, table, index, scale, residual)
    check_close(actual, gather.OP(table, index, scale, residual), tolerance=KERNEL_TOLERANCES[dtype])


@compiled
@pytest.mark.parametrize("isa", COMPILED)
def test_rows_alone_are_copied_bit_for_bit(isa: str) -> None:
    table, index = random_tensor(5, 70), torch.tensor([4, 0, 4])
    table[4, :2] = torch.tensor([-0.0, torch.inf])
    actual = run_kernel(find_kernels(isa)[gather.OP], (3, 70), torch.float32, table, index)
    assert torch.equal(actual.view(torch.int32), table[index].view(torch.int32))


@compiled
@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("wrong", [-1, 11, 1 << 40])
def test_what_is_not_in_the_table_is_refused(wrong: int, isa: str) -> None:
    with pytest.raises(IndexError, match="1 of the batch's ids"):
        find_kernels(isa)[gather.OP](torch.zeros(11, 8), torch.tensor([0, wrong, 3]), out=torch.empty(3, 8))


def fuse(body: Body) -> GraphModule:
    """Nothing else is done to the graph; what it computes stays the same."""
    graph_module = capture_body(body)
    before = run_graph(graph_module, BATCH)
    rewrite(graph_module, ("fuse_gather", fuse_gather))
    check_close(run_graph(graph_module, BATCH), before, torch.float32)
    return graph_module


def list_gathers(graph_module: GraphModule) -> list[tuple[float, bool]]:
    """Scale of each, and whether it adds something."""
    calls = [read(node) for node in graph_module.graph.nodes if is_call(node, gather.OP)]
    return [(call.scale, call.residual is not None) for call in calls]


def test_an_embedding_with_its_scale_and_what_is_added_is_one_op() -> None:
    found = fuse(lambda m, x, _: m.norm(m.a(x[:1]) + x * 3.0))
    assert list_gathers(found) == [(1.0, False)]  # x is read twice, and m.a's one row is broadcast
    found = fuse(lambda m, x, _: m.norm(x * 3.0 * 2.0))
    assert list_gathers(found) == [(6.0, False)]


def test_rows_of_two_tables_are_added_by_the_second() -> None:
    def add_rows(module: Tiny, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        first = cu_seqlens[:-1].long()
        return module.a(x).index_select(0, first) * 3.0 + module.a.weight.index_select(0, first)

    found = fuse(add_rows)
    assert list_gathers(found) == [(1.0, False), (3.0, False), (1.0, True)]
    assert "add" not in count_calls(found)


def test_what_others_read_too_stays_as_it_is() -> None:
    found = fuse(lambda m, x, cu_seqlens: m.a(x) + m.b(x * 2.0 + x))
    assert list_gathers(found) == [(1.0, False)]
    assert count_calls(found)["mul"] == 1


def test_rows_of_hidden_states_are_gathered_too() -> None:
    found = fuse(lambda m, x, cu_seqlens: m.a(x).index_select(0, cu_seqlens[:-1].long()))
    assert list_gathers(found) == [(1.0, False), (1.0, False)]
