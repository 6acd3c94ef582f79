"""Triton's kernels by op."""

from runtime.backends.backend import Kernel
from runtime.backends.cuda.paged_attention import paged_attention
from runtime.backends.cuda.rotate import rotate
from runtime.backends.cuda.store_kv import store_kv
from runtime.backends.cuda.varlen_attention import varlen_attention
from runtime.ops import paged_attention as paged_attention_op
from runtime.ops import rotate as rotate_op
from runtime.ops import store_kv as store_kv_op
from runtime.ops import varlen_attention as varlen_attention_op

TRITON_KERNELS: dict[object, Kernel] = {
    varlen_attention_op.OP: varlen_attention,
    store_kv_op.OP: store_kv,
    paged_attention_op.OP: paged_attention,
    rotate_op.OP: rotate,
}
