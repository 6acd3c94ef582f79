"""Triton's kernels by op."""

from runtime.backends.backend import Kernel
from runtime.backends.cuda.rotate import rotate
from runtime.ops import rotate as rotate_op

TRITON_KERNELS: dict[object, Kernel] = {
    rotate_op.OP: rotate,
}
