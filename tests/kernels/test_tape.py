"""Compiled kernels on a tape compute what they compute one by one, and wrong inputs stop it with the kernel's error."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.backends.cpu.layouts import pack_fp32, pad_bias
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED
from runtime.backends.cpu.tape import Tape
from runtime.memory.lifetimes import Formula
from runtime.memory.sizes import Sizes
from runtime.ops import add_norm, embed_norm, gated_act, pool, store_kv
from runtime.ops.spec import Op, name_arguments
from runtime.values import View
from tests.kernels.emulated import COMPILED, load_compiled
from tests.kernels.kernel_cases import borders, random_tensor
from tests.kernels.paged_scenes import make_scene

pytestmark = pytest.mark.parametrize("isa", COMPILED)

ROWS, WIDTH = 7, 48
ANY_ROWS = Formula(((1, 1),))
"""num_tokens."""


@dataclass
class Recorder:
    """Calls of kernels, to be made one by one or played from a tape over the same tensors."""

    isa: str
    calls: list[tuple[Op, tuple[Any, ...], Tensor]] = field(default_factory=list)
    roots: list[Tensor] = field(default_factory=list)
    sizes: Sizes = field(default_factory=Sizes)

    def add(self, op: Op, *args: Any, out: Tensor) -> None:
        self.calls.append((op, args, out))

    def run(self) -> None:
        kernels = load_compiled(self.isa).kernels
        for op, args, out in self.calls:
            kernels[op.target](*args, out=out)

    def record(self) -> Tape:
        kernels = load_compiled(self.isa).kernels
        calls = []
        for op, args, out in self.calls:
            arguments = name_arguments(op.target, args, {}) | {"out": out}
            calls.append((kernels[op.target], {name: self.view(value) for name, value in arguments.items()}))
        return Tape(calls, self.sizes)

    def view(self, value: Any) -> Any:
        """A tensor as a root of its own, its first dimension num_tokens where it has ROWS."""
        if isinstance(value, list):
            return [self.view(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        self.roots.append(value)
        rest = [Formula.constant(size) for size in value.shape[1:]]
        first = ANY_ROWS if value.shape[0] == ROWS else Formula.constant(value.shape[0])
        strides = tuple(Formula.constant(stride) for stride in value.stride())
        return View(len(self.roots) - 1, value.dtype, (first, *rest), strides, Formula.constant(0))

    def place(self, tape: Tape, rows: int = ROWS) -> None:
        numbers = self.sizes.evaluate((rows, 0, 0, 0, 0, 0))
        tape.resize(numbers)
        tape.place(np.array([root.data_ptr() for root in self.roots], np.int64), numbers)

    def play(self) -> None:
        tape = self.record()
        self.place(tape)
        tape.run(0, len(self.calls))


def chain(isa: str, x: Tensor) -> tuple[Recorder, list[Tensor]]:
    """A linear layer with a residual, a norm of its sum, a gate, and a mean: pointers, whole numbers and floats."""
    weight, bias = random_tensor(2 * WIDTH, WIDTH), random_tensor(2 * WIDTH)
    outs = [torch.full((ROWS, width), torch.nan) for width in (2 * WIDTH, 2 * WIDTH, WIDTH)]
    pooled, scale = torch.full((2, WIDTH), torch.nan), random_tensor(2 * WIDTH, seed=1)
    recorder, residual = Recorder(isa), random_tensor(ROWS, 2 * WIDTH)
    recorder.add(LINEAR_ACT_PACKED, x, pack_fp32(weight), 2 * WIDTH, pad_bias(bias), "gelu", residual, out=outs[0])
    recorder.add(add_norm.SPEC, outs[0], None, scale, None, 0.25, True, out=outs[1])
    recorder.add(gated_act.SPEC, outs[1], "silu", out=outs[2])
    recorder.add(pool.SPEC, outs[2], borders([3, 4]), "mean", True, out=pooled)
    return recorder, [*outs, pooled]


def test_tape_is_the_same_as_its_calls(isa: str) -> None:
    x = random_tensor(ROWS, WIDTH)
    calls, expected = chain(isa, x)
    calls.run()
    others, results = chain(isa, x)
    others.play()
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)
        assert result.isfinite().all()


def test_tape_follows_its_tensors(isa: str) -> None:
    """One tape: for other contents, for fewer rows, and for tensors that lie elsewhere."""
    calls, results = chain(isa, random_tensor(ROWS, WIDTH))
    calls.calls.pop()
    tape = calls.record()
    for rows, seed in ((ROWS, 1), (3, 2), (1, 3), (ROWS, 4)):
        x = random_tensor(ROWS, WIDTH, seed=seed)
        expected, wanted = chain(isa, x)
        expected.run()
        calls.roots[0] = x
        results[2].fill_(torch.nan)
        calls.place(tape, rows)
        tape.run(0, 3)
        assert torch.equal(results[2][:rows], wanted[2][:rows])
        assert results[2][rows:].isnan().all()


def test_part_of_a_tape(isa: str) -> None:
    calls, results = chain(isa, random_tensor(ROWS, WIDTH))
    tape = calls.record()
    calls.place(tape)
    tape.run(0, 2)
    assert results[1].isfinite().all()
    assert results[2].isnan().all()
    tape.run(2, 4)
    assert results[3].isfinite().all()


def test_lists_of_tensors(isa: str) -> None:
    tables, indices = [random_tensor(5, WIDTH, seed=seed) for seed in (1, 2)], [torch.arange(ROWS) % 5] * 2
    recorder, out = Recorder(isa), torch.full((ROWS, WIDTH), torch.nan)
    recorder.add(embed_norm.SPEC, tables, indices, random_tensor(WIDTH), random_tensor(WIDTH, seed=3), 1e-5, out=out)
    recorder.play()
    found = out.clone()
    recorder.run()
    assert torch.equal(found, out)
    assert out.isfinite().all()


def test_wrong_inputs_stop_the_tape_with_the_kernels_error(isa: str) -> None:
    scene = make_scene([20])
    args = list(scene.list_stored([(0, 0, 20)]))
    args[4] = args[4] + 10**6
    before = scene.buffer.clone()
    recorder, results = chain(isa, random_tensor(ROWS, WIDTH))
    recorder.calls.insert(2, (store_kv.SPEC, tuple(args), torch.empty(0)))
    with pytest.raises(IndexError, match="20 of the batch's slots, positions or layers are out"):
        recorder.play()
    assert results[1].isfinite().all()
    assert results[2].isnan().all()
    assert torch.equal(scene.buffer, before)


def test_kernel_copies_what_does_not_lie_as_it_wants(isa: str) -> None:
    source, out = random_tensor(2 * WIDTH, ROWS), torch.empty(ROWS, WIDTH)
    kernel = load_compiled(isa).kernels[gated_act.OP]
    kernel(source.t(), "silu", out=out)
    expected = torch.empty_like(out)
    kernel(source.t().contiguous(), "silu", out=expected)
    assert torch.equal(out, expected)


def test_kernel_refuses_types_that_it_does_not_know(isa: str) -> None:
    kernels, out = load_compiled(isa).kernels, torch.empty(2, WIDTH)
    with pytest.raises(ValueError, match=r"pool: cu_seqlens is torch\.int64; the kernel takes int32"):
        kernels[pool.OP](torch.zeros(5, WIDTH), torch.tensor([0, 3, 5]), "mean", out=out)
    with pytest.raises(ValueError, match=r"gated_act: x is torch\.float16; the kernel takes float32, bfloat16"):
        kernels[gated_act.OP](torch.zeros(2, 2 * WIDTH, dtype=torch.float16), "silu", out=out)
    with pytest.raises(TypeError, match="gated_act lacks its argument act"):
        kernels[gated_act.OP](torch.zeros(2, 2 * WIDTH), out=out)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_linear_layer_without_rows(isa: str, num_threads: int) -> None:
    """As the last layer of a step that only begins a prompt; rows of bf16 are prepared first, others are not."""
    packed = pack_fp32(random_tensor(40, WIDTH))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x, out = torch.empty(0, WIDTH, dtype=dtype), torch.empty(0, 40)
            load_compiled(isa).kernels[LINEAR_ACT_PACKED.target](x, packed, 40, None, "none", out=out)
    finally:
        torch.set_num_threads(before)
