"""The sum of one row from each of several tables, and the LayerNorm of it."""

import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.add_norm import choose_tile, normalize


@triton.jit(do_not_specialize=["num_rows"])
def embed_norm_kernel(
    tables, indices, strides, sizes, weight, bias, out, num_rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """A row with an index that is not in its table becomes NaN: a device cannot raise IndexError and live on."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    is_row = rows < num_rows
    mask = is_row[:, None] & (columns < width)[None, :]
    values = tl.zeros([ROWS, BLOCK], tl.float32)
    for table in tl.static_range(len(tables)):
        index = tl.load(indices[table] + rows, mask=is_row, other=0)
        is_known = (index >= 0) & (index < sizes[table])
        places = tables[table] + (index * strides[table])[:, None] + columns[None, :]
        values += tl.load(places, mask=mask & is_known[:, None], other=0.0).to(tl.float32)
        values = tl.where(mask & ~is_known[:, None], float("nan"), values)
    values = normalize(values, weight, bias, columns, width, eps, False)
    tl.store(out + (rows.to(tl.int64) * width)[:, None] + columns[None, :], values, mask=mask)


def embed_norm(
    tables: list[Tensor], indices: list[Tensor], weight: Tensor, bias: Tensor, eps: float, *, out: Tensor
) -> None:
    num_rows, width = out.shape
    rows, block, num_warps = choose_tile(width, False)
    strides, sizes = (tuple(table.stride(0) for table in tables), tuple(len(table) for table in tables))
    embed_norm_kernel[(triton.cdiv(num_rows, rows),)](
        *(tuple(tables), tuple(indices), strides, sizes, weight, bias, out, num_rows, width, eps),
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
    )
