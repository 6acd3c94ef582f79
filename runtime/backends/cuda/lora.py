"""Low-rank adapters, a row by itself: rows of one batch may all have different ones (Punica, Chen et al., 2023)."""

import triton
import triton.language as tl
from torch import Tensor

from runtime.backends.cuda.activations import activate
from runtime.backends.cuda.rows import to_rows
from runtime.backends.cuda.tiles import round_power

TILE = 4096
"""Numbers of an adapter that a program has in registers at one time."""


@triton.jit
def lora_kernel(
    rows,
    x,
    up,
    down,
    adapter_ids,
    out,
    num_adapters,
    rank,
    in_features,
    out_features,
    stride_rows,
    stride_x,
    ACT: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row with an adapter that does not exist becomes NaN: a device cannot raise IndexError and live on."""
    row = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, RANK)
    columns = tl.arange(0, BLOCK)
    adapter = tl.load(adapter_ids + row)
    is_adapted = (adapter > 0) & (adapter <= num_adapters) & (ranks < rank)
    if down is None:
        narrow = tl.load(x + row * stride_x + ranks, mask=ranks < rank, other=0.0).to(tl.float32)
    else:
        narrow = tl.zeros([RANK], tl.float32)
        down_rows = down + ((adapter - 1) * rank + ranks)[:, None] * in_features
        for start in range(0, in_features, BLOCK):
            inside = start + columns < in_features
            values = tl.load(x + row * stride_x + start + columns, mask=inside, other=0.0).to(tl.float32)
            weight = tl.load(
                down_rows + (start + columns)[None, :], mask=is_adapted[:, None] & inside[None, :], other=0.0
            )
            narrow += tl.sum(weight * values[None, :], 1)
    up_rows = up + ((adapter - 1) * rank + ranks)[:, None] * out_features
    for start in range(0, out_features, BLOCK):
        inside = start + columns < out_features
        values = tl.load(rows + row * stride_rows + start + columns, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(up_rows + (start + columns)[None, :], mask=is_adapted[:, None] & inside[None, :], other=0.0)
        values += tl.where(adapter == 0, 0.0, tl.sum(weight * narrow[:, None], 0))
        values = tl.where((adapter < 0) | (adapter > num_adapters), float("nan"), values)
        tl.store(out + row * out_features + start + columns, activate(values, ACT), mask=inside)


def lora(
    rows: Tensor,
    x: Tensor,
    up: Tensor,
    adapter_ids: Tensor,
    down: Tensor | None = None,
    act: str = "none",
    *,
    out: Tensor,
) -> None:
    rows, x = to_rows(rows), to_rows(x)
    num_adapters, rank, out_features = up.shape
    num_ranks = round_power(rank)
    lora_kernel[(len(rows),)](
        *(rows, x, up, down, adapter_ids, out, num_adapters, rank, x.shape[1], out_features),
        *(rows.stride(0), x.stride(0)),
        ACT=act,
        RANK=num_ranks,
        BLOCK=max(16, TILE // num_ranks),
        num_warps=4,
    )
