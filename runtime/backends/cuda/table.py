"""Triton's kernels by op."""

import torch

from runtime.backends.backend import Kernel
from runtime.backends.cuda.add_norm import add_norm, layer_norm
from runtime.backends.cuda.embed_norm import embed_norm
from runtime.backends.cuda.experts import experts
from runtime.backends.cuda.gated_act import gated_act
from runtime.backends.cuda.linear_act import linear_act
from runtime.backends.cuda.linear_fp8 import linear_fp8
from runtime.backends.cuda.linear_int8 import linear_int8_summed
from runtime.backends.cuda.linear_weight_only import linear_weight_only
from runtime.backends.cuda.lora import lora
from runtime.backends.cuda.max_logits import max_logits
from runtime.backends.cuda.ops import EXPERTS_SUMMED, LINEAR_INT8_SUMMED
from runtime.backends.cuda.paged_attention import paged_attention
from runtime.backends.cuda.pool import pool
from runtime.backends.cuda.rotate import rotate
from runtime.backends.cuda.store_kv import store_kv
from runtime.backends.cuda.varlen_attention import varlen_attention
from runtime.ops import add_norm as add_norm_op
from runtime.ops import embed_norm as embed_norm_op
from runtime.ops import experts as experts_op
from runtime.ops import gated_act as gated_act_op
from runtime.ops import linear_act as linear_act_op
from runtime.ops import linear_fp8 as linear_fp8_op
from runtime.ops import linear_weight_only as linear_weight_only_op
from runtime.ops import lora as lora_op
from runtime.ops import max_logits as max_logits_op
from runtime.ops import paged_attention as paged_attention_op
from runtime.ops import pool as pool_op
from runtime.ops import rotate as rotate_op
from runtime.ops import store_kv as store_kv_op
from runtime.ops import varlen_attention as varlen_attention_op

TRITON_KERNELS: dict[object, Kernel] = {
    varlen_attention_op.OP: varlen_attention,
    store_kv_op.OP: store_kv,
    paged_attention_op.OP: paged_attention,
    rotate_op.OP: rotate,
    linear_act_op.OP: linear_act,
    LINEAR_INT8_SUMMED.target: linear_int8_summed,
    linear_fp8_op.OP: linear_fp8,
    linear_weight_only_op.OP: linear_weight_only,
    experts_op.OP: experts,
    EXPERTS_SUMMED.target: experts,
    lora_op.OP: lora,
    add_norm_op.OP: add_norm,
    embed_norm_op.OP: embed_norm,
    gated_act_op.OP: gated_act,
    pool_op.OP: pool,
    max_logits_op.OP: max_logits,
    torch.ops.aten.layer_norm.default: layer_norm,
}
