"""Part `check`: every kernel, and small encoders in every precision, against references on the CPU.

A first look before anything is timed, on a shape or two of each; `make test-gpu` is the whole of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.encoders import Shape, build_bert, build_padless, pack
from bench.gpu.part import Part
from bench.gpu.target import Target
from runtime.backends.cuda.ops import EXPERTS_SUMMED, LINEAR_INT8_SUMMED
from runtime.build import build_engine
from runtime.config import EngineConfig, Precision
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import KVLayout
from runtime.limits import BatchLimits
from runtime.ops import (
    add_norm,
    embed_norm,
    experts,
    gated_act,
    linear_act,
    linear_fp8,
    linear_weight_only,
    lora,
    max_logits,
    paged_attention,
    pool,
    rotate,
    store_kv,
    varlen_attention,
)
from runtime.ops.quantized_rows import quantize_rows
from runtime.passes.quantize_weights import round_weight
from runtime.quantization.e4m3 import quantize_channels

HEADINGS = ["what", "type", "relative error", "allowed", ""]
ALLOWED = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""|found - expected| / |expected| of a kernel's result; some references compute in the type itself."""
ROUNDED_ALLOWED = 1e-2
"""More than that, where rows are rounded to 8 bits within the op: what lies half-way may become either number."""
ROUNDED = ("int8", "fp8")
ENGINES_ALLOWED: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "int8": 8e-2, "fp8": 8e-2}
SEQLENS = [5, 128, 1, 77]
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 64
WIDTH = NUM_HEADS * HEAD_DIM


@dataclass(frozen=True)
class Case:
    """`changed`: the argument that the op changes in place, which is compared where its result is empty."""

    op: Any
    args: tuple[Any, ...]
    changed: int | None = None


def list_cases(dtype: torch.dtype) -> dict[str, Case]:
    """By the kernels' names; the same numbers each time."""
    return {
        **list_row_cases(dtype),
        **list_rounded_cases(dtype),
        **list_attention_cases(dtype),
        **list_expert_cases(dtype),
    }


def sampler(dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(dtype)


def find_borders(seqlens: list[int]) -> Tensor:
    return torch.tensor([0, *seqlens]).cumsum(0).to(torch.int32)


def list_row_cases(dtype: torch.dtype) -> dict[str, Case]:
    rows, vectors, num_tokens = sampler(dtype), sampler(torch.float32), sum(SEQLENS)
    x, residual, weight, bias = (
        rows(num_tokens, WIDTH),
        rows(num_tokens, WIDTH),
        vectors(WIDTH) + 1,
        vectors(WIDTH),
    )
    matrix = rows(2 * WIDTH, WIDTH) / 16
    int8 = (vectors(2 * WIDTH, WIDTH) * 40).round().clamp(-127, 127).to(torch.int8)
    sums, scale = int8.sum(1, dtype=torch.int32), torch.rand(2 * WIDTH, generator=torch.Generator().manual_seed(1)) / 99
    ids, cu_seqlens = torch.arange(num_tokens) % 50, find_borders(SEQLENS)
    quantized = quantize_rows(x.float())
    no_more = (None, None, 0.0, 0)
    int8_args = (quantized, int8, sums, scale, vectors(2 * WIDTH), "gelu", *no_more, dtype)
    return {
        "linear_act": Case(linear_act.OP, (x, matrix, rows(2 * WIDTH), "gelu")),
        "linear_act, added": Case(linear_act.OP, (x, matrix[:WIDTH], rows(WIDTH), "none", residual)),
        "linear_int8": Case(LINEAR_INT8_SUMMED.target, int8_args),
        "add_norm": Case(add_norm.OP, (x, residual, weight, bias, 1e-12)),
        "add_norm, rms": Case(add_norm.OP, (x, residual, weight, None, 1e-5, True)),
        "layer_norm": Case(torch.ops.aten.layer_norm.default, (x, (WIDTH,), weight.to(dtype), bias.to(dtype), 1e-5)),
        "embed_norm": Case(embed_norm.OP, ([rows(50, WIDTH), rows(50, WIDTH)], [ids, ids], weight, bias, 1e-12)),
        "gated_act": Case(gated_act.OP, (rows(num_tokens, 2 * WIDTH), "silu")),
        "pool": Case(pool.OP, (x, cu_seqlens, "mean", True)),
        "max_logits": Case(max_logits.OP, (x.float(), vectors(96, WIDTH), vectors(96), cu_seqlens)),
        "lora": Case(lora.OP, (x, residual, vectors(3, 4, WIDTH), ids % 4, vectors(3, 4, WIDTH) / 16)),
    }


def list_rounded_cases(dtype: torch.dtype) -> dict[str, Case]:
    """Linear layers whose weights are rounded, deep enough for slices."""
    rows, vectors, depth = sampler(dtype), sampler(torch.float32), 16 * WIDTH
    x, weight, after = rows(3, depth), vectors(WIDTH, depth) / 64, (vectors(WIDTH), "gelu", rows(3, WIDTH))
    fp8, int8, int4 = quantize_channels(weight), round_weight(weight, 8), round_weight(weight, 4)
    return {
        "linear_fp8": Case(linear_fp8.OP, (x, fp8.values, fp8.scale, *after)),
        "linear_weight_only, 8 bits": Case(linear_weight_only.OP, (x, int8["weight"], int8["scale"], None, *after)),
        "linear_weight_only, 4 bits": Case(linear_weight_only.OP, (x, *int4.values(), *after)),
    }


def list_attention_cases(dtype: torch.dtype) -> dict[str, Case]:
    rows, num_tokens, longest = sampler(dtype), sum(SEQLENS), max(SEQLENS)
    cu_seqlens, scale = find_borders(SEQLENS), HEAD_DIM**-0.5
    q, k, v = (rows(num_tokens, heads, HEAD_DIM) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS))
    packed = (q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale)
    max_blocks = -(-longest // BLOCK_SIZE) + 1
    num_blocks = max_blocks * len(SEQLENS)
    cache = KVLayout(2, NUM_KV_HEADS, HEAD_DIM, dtype, "rows").allocate(num_blocks, torch.device("cpu"))
    cache.copy_(rows(*cache.shape))
    table = torch.arange(num_blocks, dtype=torch.int32).flip(0).view(len(SEQLENS), max_blocks)
    positions = torch.cat([torch.arange(seqlen) for seqlen in SEQLENS])
    owner = torch.repeat_interleave(torch.tensor(SEQLENS))
    slots = table[owner, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    angles = torch.arange(longest)[:, None] / 100 ** torch.linspace(0, 1, HEAD_DIM // 2)
    turns = torch.cat([angles.cos(), angles.sin()], 1)
    keys = torch.tensor(SEQLENS, dtype=torch.int32)
    ones = torch.arange(len(SEQLENS) + 1, dtype=torch.int32)
    last = (q[: len(SEQLENS)], cache, 1, table, ones, keys, 1, scale)
    prefill = (q, cache, 1, table, cu_seqlens, keys, longest, scale, positions, turns)
    return {
        "varlen_attention": Case(varlen_attention.OP, packed),
        "varlen_attention, causal": Case(varlen_attention.OP, (*packed, True, 32)),
        "rotate": Case(rotate.OP, (q, positions, turns)),
        "store_kv": Case(store_kv.OP, (k, v, cache, 1, slots, positions, turns), changed=2),
        "paged_attention, decode": Case(paged_attention.OP, last),
        "paged_attention, prefill": Case(paged_attention.OP, prefill),
    }


def list_expert_cases(dtype: torch.dtype) -> dict[str, Case]:
    rows, vectors, count = sampler(dtype), sampler(torch.float32), 5
    x, router = rows(sum(SEQLENS), WIDTH), vectors(count, WIDTH)
    up, down = rows(count, 256, WIDTH) / 16, rows(count, WIDTH, 128) / 16
    of_experts = (x, router, up, down, 2, "silu", True, True)
    int8 = [(weight.float() * 400).round().clamp(-127, 127).to(torch.int8) for weight in (up, down)]
    scales = [torch.full(weight.shape[:2], 1 / 400) for weight in int8]
    sums = [weight.sum(2, dtype=torch.int32) for weight in int8]
    return {
        "experts": Case(experts.OP, of_experts),
        "experts, int8": Case(EXPERTS_SUMMED.target, (x, router, *int8, 2, "silu", True, True, *scales, *sums)),
    }


def move(value: Any, device: torch.device) -> Any:
    """A copy, of tensors in lists too."""
    if isinstance(value, Tensor):
        return value.clone().to(device)
    return type(value)(move(item, device) for item in value) if isinstance(value, list | tuple) else value


def measure_error(case: Case, target: Target) -> float:
    """Of the target's kernel, against the op's reference on the CPU. NaN where it computes NaN."""
    with torch.inference_mode():
        args, expected_args = move(case.args, target.device), move(case.args, torch.device("cpu"))
        expected = case.op(*expected_args)
        out = torch.full_like(expected, torch.nan, device=target.device)
        kernel = target.kernels.get(case.op)
        if kernel is None:  # a CPU has not got all of them
            out.copy_(case.op(*args))
        else:
            kernel(*args, out=out)
        if case.changed is not None:
            out, expected = args[case.changed], expected_args[case.changed]
        return float((out.cpu().double() - expected.double()).norm() / expected.double().norm())


def check_kernel(part: Part, name: str, case: Case, dtype: torch.dtype) -> float:
    return add_row(
        part, name, str(dtype).removeprefix("torch."), measure_error(case, part.target), find_allowed(name, dtype)
    )


def find_allowed(name: str, dtype: torch.dtype) -> float:
    return ALLOWED[dtype] + ROUNDED_ALLOWED * any(each in name for each in ROUNDED)


def add_row(part: Part, name: str, dtype: str, error: float, allowed: float) -> float:
    is_right = error <= allowed
    part.rows.append([name, dtype, f"{error:.1e}", f"{allowed:.1e}", "" if is_right else "WRONG"])
    if not is_right:
        part.report_problem(f"{name} {dtype}: an error of {error:.1e}")
    return error


def check_engine(part: Part, kind: str, precision: Precision) -> float:
    """Two layers of BERT-base's width."""
    shape = replace(part.target.pick(Shape(), Shape(num_layers=2, hidden_size=64, num_heads=2)), num_layers=2)
    limits = BatchLimits(max_batch_tokens=512, max_batch_requests=8, max_input_tokens=128)
    batch = pack(SEQLENS)
    config = EngineConfig.model_validate({"kind": "reference", "precision": "fp32"})
    reference = build_engine(build_bert(shape), config, limits, lambda *_: None)
    engine = build_padless(part.target, shape, kind, precision, limits)
    (expected,), (found,) = (each.run(batch).arrays.values() for each in (reference, engine))
    error = float(torch.from_numpy(found - expected).norm() / torch.from_numpy(expected).norm())
    return add_row(part, f"encoder, {kind}", precision, error, ENGINES_ALLOWED[precision])


def check_all(part: Part) -> None:
    part.headings = HEADINGS
    cases: dict[str, Callable[[], float]] = {}
    dtypes = part.target.pick((torch.float16, torch.bfloat16, torch.float32), (torch.float32,))
    for dtype in dtypes:
        for name, case in list_cases(dtype).items():
            if case.op is linear_fp8.OP and not part.target.has_fp8:
                continue
            cases[f"{name} {dtype}"] = partial(check_kernel, part, name, case, dtype)
    for kind in part.target.kinds:
        for precision in part.target.precisions:
            cases[f"encoder {kind} {precision}"] = partial(check_engine, part, kind, precision)
    part.run_cases(cases)
