"""From a graph to numbered steps: who keeps whose memory, what is planned, and what torch allocates for itself."""

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.backend import Kernel
from runtime.backends.plain.table import TORCH_KERNELS
from runtime.batch import Batch
from runtime.capture import symbol_names, to_formula
from runtime.engine import EngineError, EngineInfo
from runtime.engines.bound import BoundProgram
from runtime.engines.planned import PlannedEngine
from runtime.listing import format_program
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.ops import pool
from runtime.passes.fuse_add_norm import fuse_add_norm
from runtime.program import Instruction, Program
from tests.kernels.kernel_cases import CONFIGURABLE, find_kernels
from tests.kernels.tiny_graphs import CPU, HIDDEN_SIZE, Body, Tiny, capture_body, random_batch, rewrite, run_graph
from tests.tolerances import check_close

LARGEST = BatchShape(64, 16, 32, 16)
BATCH = random_batch([5, 1, 9])


def make_engine(program: Program, kernels: Mapping[object, Kernel] = TORCH_KERNELS) -> PlannedEngine:
    info = EngineInfo("planned", "fp32", "", "cpu", 1, program.outputs)
    return PlannedEngine(program, kernels, LARGEST, CPU, info, cap_bytes=None)


def check_program(body: Body, batch: Batch = BATCH) -> Program:
    """What the engine computes in planned memory is what the graph says, the first time and when all is bound."""
    graph_module = capture_body(body)
    others = [random_batch(batch.seqlens.tolist(), seed=7), batch]
    for implementation in CONFIGURABLE[1:]:
        kernels = find_kernels(implementation)
        engine = make_engine(lower(graph_module, kernels), kernels)
        for each in (batch, *others):
            check_close(engine.run(each).arrays["rows"], run_graph(graph_module, each))
    program = lower(graph_module)
    engine = make_engine(program)
    for each in (batch, *others):
        check_close(engine.run(each).arrays["rows"], run_graph(graph_module, each))
    return program


def planned(program: Program, name: str) -> Instruction:
    (found,) = (each for each in program.planned if each.name == name)
    return found


def end_of(program: Program, name: str) -> int:
    """The last step that reads a planned tensor."""
    life = planned(program, name).life
    assert life is not None
    return life.end


def step_named(program: Program, name: str) -> int:
    (index,) = (index for index, step in enumerate(program.instructions) if step.name == name)
    return index


def kinds(program: Program) -> dict[str, str]:
    return {step.name: step.kind for step in program.instructions}


def test_tensor_dies_with_its_last_reader() -> None:
    program = check_program(lambda m, x, _: m.c(m.b(m.a(x))) + m.b.bias)
    assert end_of(program, "linear") == step_named(program, "linear_1")


def test_output_outlives_every_step() -> None:
    program = check_program(lambda m, x, _: m.b(m.a(x)))
    assert end_of(program, "linear_1") == len(program.instructions)


def test_view_keeps_its_base_alive() -> None:
    def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
        view = m.a(x).view(-1, 2, HIDDEN_SIZE // 2)[:, 1]
        for _ in range(3):
            x = m.c(m.b(x))
        return x[:, : HIDDEN_SIZE // 2] * view

    program = check_program(body)
    assert "view" not in kinds(program), "a view is no instruction"
    assert end_of(program, "linear") == step_named(program, "mul")


def test_view_as_output_keeps_its_base_to_the_end() -> None:
    program = check_program(lambda m, x, _: m.a(x).view(-1, 2, HIDDEN_SIZE // 2).flatten(1))
    assert end_of(program, "linear") == len(program.instructions)


# Ops that give back their input's memory under some condition. If the plan takes them for copies, the memory is given
# to another tensor while it is still read.
PERHAPS_THE_SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape of a slice": lambda x: x[:, 8:24].reshape(-1, 4, 4).flatten(1),
    "contiguous": lambda x: x.contiguous(),
    "to the type it has": lambda x: x.float(),
    "to the type of another": lambda x: x.type_as(x),
    "chunk": lambda x: x.chunk(2, dim=1)[1],
    "split": lambda x: x.split(HIDDEN_SIZE // 4, dim=1)[2],
    "dropout": lambda x: torch.ops.aten.dropout.default(x, 0.1, False),
    "detach": lambda x: x.detach(),
    "expand": lambda x: x[:, None].expand(-1, 2, -1).select(1, 1),
}


@pytest.mark.parametrize("name", PERHAPS_THE_SAME)
def test_op_that_may_return_its_input_keeps_it_alive(name: str) -> None:
    def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
        same = PERHAPS_THE_SAME[name](m.a(x))
        for _ in range(4):
            x = m.c(m.b(x))
        return x[:, : same.shape[1]] * same

    check_program(body)


def test_op_without_a_kernel_is_counted_and_right() -> None:
    program = check_program(lambda m, x, _: torch.sigmoid(m.a(x)) + torch.erf(x))
    assert [step.name for step in program.unplanned] == ["sigmoid", "erf"]


def test_op_without_inputs() -> None:
    program = check_program(lambda m, x, _: m.a(x) + torch.ones(HIDDEN_SIZE))
    assert kinds(program)["ones"] == "unplanned"


def test_linear_and_lookup_of_more_dimensions() -> None:
    def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
        rows = torch.stack([x, x * 2], 1)
        table = functional.embedding(torch.zeros(2, 3, dtype=torch.long), m.a.weight)
        return m.a(rows).sum(1) + table.sum((0, 1))

    assert kinds(check_program(body))["linear"] == "planned"


def test_size_that_may_shrink_as_the_batch_grows_is_not_planned() -> None:
    """num_tokens - num_seqs: a plan for a larger bucket could be too small for a batch within it."""

    def body(m: Tiny, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        head = pool.OP(x, cu_seqlens, "mean")
        rest = m.a(x[head.shape[0] :])
        return rest.sum(0, keepdim=True) + head

    program = check_program(body)
    assert kinds(program)["linear"] == "unplanned"


def test_dimensions_are_formulas_of_the_batch() -> None:
    graph_module = capture_body(lambda m, x, cu_seqlens: pool.OP(m.a(x), cu_seqlens, "mean"))
    program = lower(graph_module)
    for name, rows in (("linear", "num_tokens"), ("pool", "num_seqs")):
        out, life = planned(program, name).out, planned(program, name).life
        assert out is not None and life is not None
        assert [str(dim) for dim in out.dims] == [rows, str(HIDDEN_SIZE)]
        assert str(life.num_bytes) == f"{4 * HIDDEN_SIZE}*{rows}"
    names = symbol_names(graph_module)
    (max_seqlen,) = (node.meta["val"] for node in graph_module.graph.nodes if node.name == "max_seqlen")
    assert str(to_formula(max_seqlen * 3, names)) == "3*max_seqlen"
    assert str(to_formula(7, names)) == "7"
    for broken in (max_seqlen // 2, max_seqlen - 5):
        with pytest.raises(ValueError, match="max_seqlen"):
            to_formula(broken, names)


def test_shared_weights_are_counted_once() -> None:
    once, thrice = (lower(capture_body(body)) for body in (lambda m, x, _: m.a(x), lambda m, x, _: m.a(m.a(m.a(x)))))
    assert thrice.weight_bytes == once.weight_bytes > 4 * HIDDEN_SIZE**2


def test_result_is_a_copy() -> None:
    """The arena's memory belongs to the next step."""
    engine = make_engine(lower(capture_body(lambda m, x, _: m.a(x))))
    first = engine.run(BATCH).arrays["rows"]
    kept = first.copy()
    engine.run(random_batch([9, 3, 3], seed=1))
    np.testing.assert_array_equal(first, kept)


def test_listing_of_a_program_counts_its_kinds() -> None:
    text = format_program(lower(capture_body(lambda m, x, _: torch.sigmoid(m.a(x)).view(-1, 4))), LARGEST)
    assert "2 planned, 1 unplanned; at (64, 16, 32, 16): peak " in text
    assert "linear  128*num_tokens bytes, steps 1-2, 8192 at " in text


def test_program_keeps_no_graph() -> None:
    """Behind a step with keywords a graph would stay, and with it every weight that a pass has replaced."""
    graph_module = capture_body(lambda m, x, _: m.a(x) + torch.arange(x.shape[0], device=x.device)[:, None])
    kept = weakref.ref(graph_module)
    program = lower(graph_module)
    del graph_module
    gc.collect()
    assert kept() is None
    assert len(program.planned) > 0


def test_unplanned_results_are_freed_after_their_last_use() -> None:
    """And counted: two at a time here, however many there are."""
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(x: Tensor) -> Tensor:
        result = torch.erf(x)
        seen.append(weakref.ref(result))
        alive.append(sum(each() is not None for each in seen))
        return result

    def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
        for _ in range(6):
            x = torch.erf(x)
        return x

    program = lower(capture_body(body))
    watched = [
        replace(instruction, target=watch) if instruction.kind == "unplanned" else instruction
        for instruction in program.instructions
    ]
    engine = make_engine(replace(program, instructions=tuple(watched)))
    for _ in range(2):
        engine.run(BATCH)
    assert len(seen) == 12 and max(alive) == 2
    assert not any(each() is not None for each in seen)
    assert program.unplanned_bytes(LARGEST) == 2 * LARGEST.num_tokens * HIDDEN_SIZE * 4


@pytest.mark.parametrize("implementation", CONFIGURABLE)
def test_unplanned_results_that_kernels_read_are_freed_behind_them(implementation: str) -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(x: Tensor) -> Tensor:
        result = torch.erf(x)
        alive.append(sum(each() is not None for each in seen))
        seen.append(weakref.ref(result))
        return result

    def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
        for _ in range(4):
            x = m.norm(torch.erf(x) + x)
        return x

    kernels = find_kernels(implementation)
    program = lower(rewrite(capture_body(body), ("fuse_add_norm", fuse_add_norm)), kernels)
    watched = [replace(each, target=watch) if each.kind == "unplanned" else each for each in program.instructions]
    make_engine(replace(program, instructions=tuple(watched)), kernels).run(BATCH)
    assert alive == [0, 0, 0, 0]


def test_results_in_a_tuple_are_computed_anew_each_time() -> None:
    """Nothing of them may be remembered with the batch's shape."""
    engine = make_engine(lower(capture_body(lambda m, x, _: m.a(x.sort(dim=1)[0]))))
    batches = [random_batch([9, 3, 3], seed=seed) for seed in (1, 2, 1)]
    first, second, again = (engine.run(batch).arrays["rows"] for batch in batches)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


def test_compiled_kernels_between_others() -> None:
    """A norm before, between and behind what torch allocates: two rows of calls, and one that has to wait."""
    check_program(lambda m, x, _: m.norm(torch.erf(m.other_norm(m.norm(x))) + m.norm(x)))


def test_compiled_kernel_reads_what_is_not_dense() -> None:
    """What it has to copy first, it copies in each step."""
    check_program(lambda m, x, _: m.norm(m.a(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1)))
    check_program(lambda m, x, _: functional.layer_norm(m.a(x).view(-1, 8, 4).transpose(1, 2), (8,)).flatten(1))


def test_missing_argument_is_named() -> None:
    engine = make_engine(lower(capture_body(lambda m, x, _: m.a(x))))
    with pytest.raises(EngineError, match="the model reads input_ids, which the batch does not have"):
        BoundProgram(engine.program, TORCH_KERNELS).run((*LARGEST, 0, 0), engine.arena.layout(LARGEST, list), {}, {})
