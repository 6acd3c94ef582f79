"""The compiled kernels: which op each is for, how its tensors have to lie, and what can be wrong with its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from runtime.backends.cpu.ops import (
    EXPERTS_PACKED,
    LINEAR_ACT_PACKED,
    LINEAR_INT8_PACKED,
    MAX_LOGITS_PACKED,
    ROUND_CHANNELS,
)
from runtime.backends.cpu.structs import Struct, lay_struct
from runtime.ops import (
    add_norm,
    dynamic_conv,
    embed_norm,
    gated_act,
    gather,
    lora,
    paged_attention,
    pool,
    rotate,
    store_kv,
    unfold,
    varlen_attention,
)
from runtime.ops.spec import Op

Sizes = Sequence[int]
Lies = Callable[[Sizes, Sizes], bool]
"""Whether a tensor of these sizes and strides lies as wanted."""


def lies_dense(sizes: Sizes, strides: Sizes) -> bool:
    """Contiguous: an element follows the other."""
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def lies_in_rows(sizes: Sizes, strides: Sizes) -> bool:
    """By its last dimension dense, by all others evenly spaced."""
    if not sizes or (sizes[-1] != 1 and strides[-1] != 1):
        return False
    places = [(size, stride) for size, stride in zip(sizes[:-1], strides[:-1], strict=True) if size != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(places))


def lies_in_heads(sizes: Sizes, strides: Sizes) -> bool:
    """[num_tokens, num_heads, head_dim] of which each token is dense."""
    return len(sizes) == 3 and lies_dense(sizes[1:], strides[1:])


def lies_in_rows_or_heads(sizes: Sizes, strides: Sizes) -> bool:
    return lies_in_heads(sizes, strides) if len(sizes) == 3 else lies_in_rows(sizes, strides)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tensor must be like."""

    lies: Lies
    dtypes: tuple[torch.dtype, ...]


FLOATS = (torch.float32, torch.bfloat16)
ROWS, HEADS = Wanted(lies_in_rows, FLOATS), Wanted(lies_in_heads, FLOATS)
ROWS_OR_HEADS = Wanted(lies_in_rows_or_heads, FLOATS)
QUANTISED_OR_ROWS = Wanted(lies_in_rows, (*FLOATS, torch.uint8))
FP32, INT8, BYTES, INT32, INT64 = (
    Wanted(lies_dense, (dtype,)) for dtype in (torch.float32, torch.int8, torch.uint8, torch.int32, torch.int64)
)
PACKED = Wanted(lies_dense, FLOATS)
PACKED_EXPERTS = Wanted(lies_dense, (*FLOATS, torch.uint8))
CACHE = Wanted(lies_dense, (*FLOATS, torch.float16, torch.int8))


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """`wanted`: of every tensor by its name. `wrong`: what inputs that a kernel counts have wrong with them."""

    op: Op
    wanted: Mapping[str, Wanted]
    wrong: str = ""

    @property
    def struct(self) -> Struct:
        return lay_struct(self.op)


OUT_QUANTISATION = {"out": QUANTISED_OR_ROWS, "out_inverse_smooth": FP32}
KERNELS = (
    KernelSpec(
        varlen_attention.SPEC,
        {"q": HEADS, "k": HEADS, "v": HEADS, "cu_seqlens_q": INT32, "cu_seqlens_k": INT32, "bias": FP32}
        | {"num_keys": INT32, "position_k": HEADS, "position_q": HEADS, "buckets": INT32, "out": HEADS},
        "sequences are longer than the attention bias or the buckets reach, or have fewer keys than num_keys says, "
        "or the buckets have no rows or turn back",
    ),
    KernelSpec(
        store_kv.SPEC,
        {"k": HEADS, "v": HEADS, "kv_cache": CACHE, "slot_mapping": INT64, "position_ids": INT64, "rotary": FP32}
        | {"out": ROWS},
        "slots, positions or layers are out of range",
    ),
    KernelSpec(
        paged_attention.SPEC,
        {"q": HEADS, "kv_cache": CACHE, "block_table": INT32, "cu_seqlens": INT32, "cache_seqlens": INT32}
        | {"position_ids": INT64, "rotary": FP32, "bias": FP32, "out": HEADS},
        "blocks, positions, lengths or layers are out of range, or sequences longer than the attention bias reaches",
    ),
    KernelSpec(LINEAR_ACT_PACKED, {"x": ROWS, "packed": PACKED, "bias": FP32, "residual": ROWS, "out": ROWS}),
    KernelSpec(
        LINEAR_INT8_PACKED,
        {"x": QUANTISED_OR_ROWS, "packed": BYTES, "bias": FP32, "residual": ROWS, "inverse_smooth": FP32}
        | OUT_QUANTISATION,
    ),
    KernelSpec(EXPERTS_PACKED, {"x": ROWS, "router": FP32, "up": PACKED_EXPERTS, "down": PACKED_EXPERTS, "out": ROWS}),
    KernelSpec(add_norm.SPEC, {"x": ROWS_OR_HEADS, "residual": ROWS, "weight": FP32, "bias": FP32} | OUT_QUANTISATION),
    KernelSpec(
        rotate.SPEC, {"x": HEADS, "position_ids": INT64, "table": FP32, "out": HEADS}, "positions are out of the table"
    ),
    KernelSpec(
        lora.SPEC,
        {"rows": ROWS, "x": ROWS, "up": FP32, "adapter_ids": INT64, "down": FP32, "out": ROWS},
        "adapter_ids are out of range",
    ),
    KernelSpec(unfold.SPEC, {"hidden_states": ROWS, "cu_seqlens": INT32, "out": ROWS}),
    KernelSpec(dynamic_conv.SPEC, {"values": ROWS, "kernels": ROWS, "cu_seqlens": INT32, "out": ROWS}),
    KernelSpec(gated_act.SPEC, {"x": ROWS} | OUT_QUANTISATION),
    KernelSpec(
        embed_norm.SPEC,
        {"tables": ROWS, "indices": INT64, "weight": FP32, "bias": FP32, "out": ROWS},
        "ids or positions are out of their embedding's range",
    ),
    KernelSpec(
        gather.SPEC,
        {"table": ROWS, "index": INT64, "residual": ROWS, "out": ROWS},
        "ids or positions are out of their embedding's range",
    ),
    KernelSpec(pool.SPEC, {"hidden_states": ROWS, "cu_seqlens": INT32, "num_prompt_tokens": INT32, "out": FP32}),
    KernelSpec(MAX_LOGITS_PACKED, {"rows": FP32, "packed": FP32, "bias": FP32, "cu_seqlens": INT32, "out": FP32}),
    KernelSpec(ROUND_CHANNELS, {"weight": FP32, "limits": FP32, "scale": FP32, "out": INT8}),
)
