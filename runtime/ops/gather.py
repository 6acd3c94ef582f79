"""`padless::gather`: rows of a table by their numbers, scaled, and added to other rows.

    table [num_entries, width], index int64 [num_rows], residual [num_rows, width] or None
        -> like the table's rows [num_rows, width]: table[index] * scale + residual

Raises IndexError for an index that is not in the table.
"""

from torch import Tensor
from torch.nn import functional

from runtime.ops.spec import define_op


def gather_shape(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty(index.shape[0], table.shape[1])


def gather(table: Tensor, index: Tensor, scale: float = 1.0, residual: Tensor | None = None) -> Tensor:
    """The reference: look up, scale and add in fp32."""
    rows = functional.embedding(index, table).float() * scale
    if residual is not None:
        rows = rows + residual.float()
    return rows.to(table.dtype)


SPEC = define_op(gather, gather_shape)
OP = SPEC.target
