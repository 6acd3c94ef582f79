"""Attention over a paged cache as one dense scaled-dot-product call for each sequence."""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import load_rows, store_rows
from runtime.ops.paged_attention import attend
from runtime.ops.rotate import turn_heads


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    block_table: Tensor,
    cu_seqlens: Tensor,
    cache_seqlens: Tensor,
    max_seqlen: int,
    softmax_scale: float,
    position_ids: Tensor | None = None,
    rotary: Tensor | None = None,
    window: int = -1,
    softcap: float = 0.0,
    *,
    out: Tensor,
) -> None:
    if rotary is not None:
        assert position_ids is not None, "A rotation needs positions. This is a bug."
        angles = rotary[position_ids]
        q, k = turn_heads(q, angles), turn_heads(k, angles)
    keys, values = kv_cache[layer, :, 0], kv_cache[layer, :, 1]
    store_rows(keys, slot_mapping, k, is_value=False)
    store_rows(values, slot_mapping, v, is_value=True)
    # One transfer from the device for both.
    numbers = torch.cat([cu_seqlens, cache_seqlens]).tolist()
    borders, lengths = numbers[: len(cu_seqlens)], numbers[len(cu_seqlens) :]
    for index, num_keys in enumerate(lengths):
        rows = slice(borders[index], borders[index + 1])
        first = find_first_key(num_keys - (rows.stop - rows.start), window)
        blocks = block_table[index, first // BLOCK_SIZE : -(-num_keys // BLOCK_SIZE)]
        count = num_keys - first // BLOCK_SIZE * BLOCK_SIZE
        past_k, past_v = (
            load_rows(heads, blocks, count, q.shape[2], is_value=is_value)[first % BLOCK_SIZE :]
            for heads, is_value in ((keys, False), (values, True))
        )
        if softcap > 0:
            out[rows] = attend(q[rows].float(), past_k, past_v, softmax_scale, window, softcap)
        else:
            out[rows] = attend_dense(q[rows], past_k.to(q.dtype), past_v.to(q.dtype), softmax_scale, window)


def find_first_key(position: int, window: int) -> int:
    """The first key that any query from this position on looks at: what lies before it may no longer be there."""
    return max(0, position - window) if window >= 0 else 0


def attend_dense(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, window: int) -> Tensor:
    """One sequence, as `runtime.ops.paged_attention.attend`, without a softcap."""
    len_q, len_k = len(q), len(k)
    mask = None
    if len_q > 1 and (len_q < len_k or window >= 0):
        mask = torch.ones(len_q, len_k, dtype=torch.bool, device=q.device).tril_(len_k - len_q)
        if window >= 0:
            mask.triu_(len_k - len_q - window)
    attended = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        mask,
        is_causal=mask is None and len_q > 1,
        scale=softmax_scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1)
