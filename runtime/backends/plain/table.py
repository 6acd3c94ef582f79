"""torch's own kernels: which ops can write into the arena, on every device."""

import torch
from torch import Tensor

from runtime.backends.backend import Backend, Kernel
from runtime.backends.plain.add_norm import add_norm, layer_norm
from runtime.backends.plain.experts import experts
from runtime.backends.plain.gated_act import gated_act
from runtime.backends.plain.linear_act import linear, linear_act
from runtime.backends.plain.linear_int8 import linear_int8
from runtime.backends.plain.lora import lora
from runtime.backends.plain.paged_attention import paged_attention
from runtime.backends.plain.pool import pool
from runtime.backends.plain.rotate import rotate
from runtime.backends.plain.store_kv import store_kv
from runtime.backends.plain.varlen_attention import varlen_attention
from runtime.ops import add_norm as add_norm_op
from runtime.ops import dynamic_conv as dynamic_conv_op
from runtime.ops import experts as experts_op
from runtime.ops import gated_act as gated_act_op
from runtime.ops import linear_act as linear_act_op
from runtime.ops import linear_int8 as linear_int8_op
from runtime.ops import lora as lora_op
from runtime.ops import max_logits as max_logits_op
from runtime.ops import paged_attention as paged_attention_op
from runtime.ops import pool as pool_op
from runtime.ops import rotate as rotate_op
from runtime.ops import store_kv as store_kv_op
from runtime.ops import unfold as unfold_op
from runtime.ops import varlen_attention as varlen_attention_op

aten = torch.ops.aten


def embedding(weight: Tensor, indices: Tensor, *_: object, out: Tensor) -> None:
    torch.index_select(weight, 0, indices.flatten(), out=out.view(-1, weight.shape[1]))


def convert(x: Tensor, *_: object, out: Tensor) -> None:
    out.copy_(x)


def concatenate(parts: list[Tensor], dim: int = 0, *, out: Tensor) -> None:
    torch.cat(parts, dim, out=out)


def arange(end: int, *, out: Tensor, **_: object) -> None:
    torch.arange(end, out=out)


TORCH_KERNELS: dict[object, Kernel] = {
    varlen_attention_op.OP: varlen_attention,
    store_kv_op.OP: store_kv,
    paged_attention_op.OP: paged_attention,
    linear_act_op.OP: linear_act,
    linear_int8_op.OP: linear_int8,
    lora_op.OP: lora,
    add_norm_op.OP: add_norm,
    experts_op.OP: experts,
    gated_act_op.OP: gated_act,
    pool_op.OP: pool,
    rotate_op.OP: rotate,
    max_logits_op.OP: max_logits_op.write_max_logits,
    unfold_op.OP: unfold_op.write_unfolded,
    dynamic_conv_op.OP: dynamic_conv_op.write_convolved,
    aten.linear.default: linear,
    aten.layer_norm.default: layer_norm,
    aten.embedding.default: embedding,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.tanh.default: torch.tanh,
    aten.gelu.default: aten.gelu.out,
    aten.silu.default: aten.silu.out,
    aten.ne.Scalar: aten.ne.Scalar_out,
    aten.to.dtype: convert,
    aten.contiguous.default: convert,
    aten.arange.default: arange,
    aten.cat.default: concatenate,
    aten.index_select.default: torch.index_select,
    aten.cumsum.default: torch.cumsum,
    aten.clamp_min.default: aten.clamp_min.out,
    aten.linalg_vector_norm.default: aten.linalg_vector_norm.out,
}


def plain_backend(device: torch.device) -> Backend:
    """torch's 16-bit GEMM on a CPU is slow without instructions for it, and its results depend on the rows beside."""
    return Backend("torch", device, TORCH_KERNELS, keeps_linears=device.type == "cpu")


VIEW_OPS: frozenset[object] = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.transpose.int,
        aten.t.default,
        aten.permute.default,
        aten.expand.default,
        aten.expand_as.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
    }
)
"""Results that share their first argument's memory. A reshape or flatten that has to copy is not one of them."""
