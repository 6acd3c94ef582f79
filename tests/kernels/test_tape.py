"""Compiled kernels on a tape compute what they compute one by one, and wrong inputs stop it with the kernel's error."""

import pytest
import torch
from torch import Tensor

from runtime.kernels.cpu.library import pack_fp32, pad_bias
from runtime.kernels.cpu.native import CpuKernels, NativeCall
from runtime.kernels.cpu.tape import Tape
from tests.kernels.emulated import COMPILED, load_compiled
from tests.kernels.kernel_cases import borders, random_tensor
from tests.kernels.paged_scenes import make_scene

pytestmark = pytest.mark.parametrize("isa", COMPILED)

ROWS, WIDTH = 7, 48


def make_kernels(isa: str) -> CpuKernels:
    return CpuKernels(load_compiled(isa))


def chain(kernels: CpuKernels, x: Tensor) -> tuple[list[NativeCall], list[Tensor]]:
    """A linear layer with a residual, a norm of its sum, a gate, and a mean: pointers, whole numbers and floats."""
    weight, bias = random_tensor(2 * WIDTH, WIDTH), random_tensor(2 * WIDTH)
    outs = [torch.full((ROWS, width), torch.nan) for width in (2 * WIDTH, 2 * WIDTH, WIDTH)]
    pooled, scale = torch.full((2, WIDTH), torch.nan), random_tensor(2 * WIDTH, seed=1)
    calls = [
        kernels.linear_act(
            x, pack_fp32(weight), 2 * WIDTH, pad_bias(bias), "gelu", random_tensor(ROWS, 2 * WIDTH), out=outs[0]
        ),
        kernels.add_norm(outs[0], None, scale, None, 0.25, True, out=outs[1]),
        kernels.gated_act(outs[1], "silu", out=outs[2]),
        kernels.pool(outs[2], borders([3, 4]), "mean", True, out=pooled),
    ]
    return calls, [*outs, pooled]


def test_tape_is_the_same_as_its_calls(isa: str) -> None:
    kernels, x = make_kernels(isa), random_tensor(ROWS, WIDTH)
    calls, expected = chain(kernels, x)
    for call in calls:
        call.run()
    others, results = chain(kernels, x)
    Tape(others).run()
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)
        assert result.isfinite().all()


def test_tape_reads_what_its_tensors_hold_when_it_runs(isa: str) -> None:
    x = random_tensor(ROWS, WIDTH)
    calls, results = chain(make_kernels(isa), x)
    tape = Tape(calls)
    tape.run()
    first = results[-1].clone()
    x.copy_(random_tensor(ROWS, WIDTH, seed=5))
    tape.run()
    others, expected = chain(make_kernels(isa), x)
    Tape(others).run()
    assert torch.equal(results[-1], expected[-1])
    assert not torch.equal(first, results[-1])


def test_wrong_inputs_stop_the_tape_with_the_kernels_error(isa: str) -> None:
    kernels, scene = make_kernels(isa), make_scene([20])
    args = list(scene.batch([(0, 0, 20)]))
    args[5] = args[5] + 10**6
    before, attended = scene.buffer.clone(), torch.full_like(args[0], torch.nan).contiguous()
    calls, results = chain(kernels, random_tensor(ROWS, WIDTH))
    tape = Tape([*calls[:2], kernels.paged_attention(*args, out=attended), *calls[2:]])
    with pytest.raises(IndexError, match="20 of the batch's slots, blocks, positions or lengths are out of range"):
        tape.run()
    assert results[1].isfinite().all()
    assert results[2].isnan().all()
    assert torch.equal(scene.buffer, before)


def test_call_with_copies_is_not_for_a_tape(isa: str) -> None:
    kernels, source, out = make_kernels(isa), random_tensor(2 * WIDTH, ROWS), torch.empty(ROWS, WIDTH)
    call = kernels.gated_act(source.t(), "silu", out=out)
    call.run()
    expected = torch.empty_like(out)
    kernels.gated_act(source.t().contiguous(), "silu", out=expected).run()
    assert torch.equal(out, expected)
    with pytest.raises(AssertionError, match="would read old copies"):
        Tape([call])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_linear_layer_without_rows(isa: str, num_threads: int) -> None:
    """As the last layer of a step that only begins a prompt; rows of bf16 are prepared first, others are not."""
    packed = pack_fp32(random_tensor(40, WIDTH))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x, out = torch.empty(0, WIDTH, dtype=dtype), torch.empty(0, 40)
            make_kernels(isa).linear_act(x, packed, 40, None, "none", out=out).run()
    finally:
        torch.set_num_threads(before)
