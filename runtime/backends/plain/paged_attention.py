"""Attention over a paged cache as one dense scaled-dot-product call for each sequence."""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import load_rows
from runtime.ops.paged_attention import attend
from runtime.ops.rotate import turn_heads


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    block_table: Tensor,
    cu_seqlens: Tensor,
    cache_seqlens: Tensor,
    max_seqlen: int,
    softmax_scale: float,
    position_ids: Tensor | None = None,
    rotary: Tensor | None = None,
    causal: bool = True,
    window: int = -1,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    if rotary is not None:
        assert position_ids is not None, "A rotation needs positions. This is a bug."
        q = turn_heads(q, rotary[position_ids])
    # One transfer from the device for both.
    numbers = torch.cat([cu_seqlens, cache_seqlens]).tolist()
    borders, lengths = numbers[: len(cu_seqlens)], numbers[len(cu_seqlens) :]
    for index, num_keys in enumerate(lengths):
        rows = slice(borders[index], borders[index + 1])
        first = find_first_key(num_keys - (rows.stop - rows.start), window)
        blocks = block_table[index, first // BLOCK_SIZE : -(-num_keys // BLOCK_SIZE)]
        count = num_keys - first // BLOCK_SIZE * BLOCK_SIZE
        k, v = (
            load_rows(kv_cache[layer, :, kind], blocks, count, q.shape[2], is_value=kind == 1)[first % BLOCK_SIZE :]
            for kind in range(2)
        )
        if softcap > 0 or bias is not None or num_keys == 0:
            out[rows] = attend(q[rows].float(), k, v, softmax_scale, causal, window, softcap, bias)
        else:
            out[rows] = attend_dense(q[rows], k.to(q.dtype), v.to(q.dtype), softmax_scale, causal, window)


def find_first_key(position: int, window: int) -> int:
    """The first key that any query from this position on looks at: what lies before it may no longer be there."""
    return max(0, position - window) if window >= 0 else 0


def attend_dense(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool, window: int) -> Tensor:
    """One sequence, as `runtime.ops.paged_attention.attend`, without a softcap or a bias, over one key or more."""
    len_q, len_k = len(q), len(k)
    is_causal, mask = causal and len_q > 1, None
    if is_causal and (len_q < len_k or window >= 0):
        mask = torch.ones(len_q, len_k, dtype=torch.bool, device=q.device).tril_(len_k - len_q)
        if window >= 0:
            mask.triu_(len_k - len_q - window)
    attended = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        mask,
        is_causal=is_causal and mask is None,
        scale=softmax_scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1)
