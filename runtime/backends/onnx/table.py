"""All ops that ONNX Runtime computes, and how each is written."""

from runtime.backends.onnx import (
    add_norm,
    dynamic_conv,
    embed_norm,
    experts,
    gated_act,
    linear_act,
    linear_int8,
    lora,
    max_logits,
    paged_attention,
    pool,
    rotate,
    store_kv,
    unfold,
    varlen_attention,
)
from runtime.backends.onnx.aten import ATEN
from runtime.backends.onnx.lowering import Lower
from runtime.ops import add_norm as add_norm_op
from runtime.ops import dynamic_conv as dynamic_conv_op
from runtime.ops import embed_norm as embed_norm_op
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

LOWERINGS: dict[object, Lower] = ATEN | {
    add_norm_op.OP: add_norm.lower,
    dynamic_conv_op.OP: dynamic_conv.lower,
    embed_norm_op.OP: embed_norm.lower,
    experts_op.OP: experts.lower,
    gated_act_op.OP: gated_act.lower,
    linear_act_op.OP: linear_act.lower,
    linear_int8_op.OP: linear_int8.lower,
    lora_op.OP: lora.lower,
    max_logits_op.OP: max_logits.lower,
    paged_attention_op.OP: paged_attention.lower,
    pool_op.OP: pool.lower,
    rotate_op.OP: rotate.lower,
    store_kv_op.OP: store_kv.lower,
    unfold_op.OP: unfold.lower,
    varlen_attention_op.OP: varlen_attention.lower,
}
