"""`padless::paged_attention`: store the new keys and values in the cache, then let each new token look at its past.

    q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim], kv_cache as in
        `runtime.kv_cache.layout` -> [num_tokens, num_heads, head_dim]; the cache's `layer` is changed in place

`slot_mapping` [num_tokens] says where the new keys and values go, `block_table` int32 [num_seqs, max_blocks] which
blocks hold a sequence's past and present, `cache_seqlens` int32 [num_seqs] how many keys those are in all. The tokens
of one sequence lie between two borders of `cu_seqlens` int32 [num_seqs + 1]; its last token is the last of its keys,
and each token sees those up to itself. Several heads of q share one of k (Ainslie et al., 2023): head h reads kv head
h // (num_heads / num_kv_heads).

With `rotary`, fp32 [max_positions, rotary_dim], cosines and then sines of rotary_dim / 2 angles, the first `rotary_dim`
numbers of each head of q and k are turned first, by the row of the token's `position_ids` (Su et al., 2021; element i
together with i + rotary_dim / 2). `window`: how many keys behind itself a token sees; -1 for all. `softcap` over 0:
scores s become softcap * tanh(s / softcap).

Paging: Kwon et al., 2023 (vLLM). One op for all three, because they read and write the same rows.
"""

import torch
from torch import Tensor

from runtime.kv_cache.layout import load_rows, store_rows
from runtime.ops.rotate import rotate
from runtime.ops.spec import define_op


def paged_attention_shape(q: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


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
) -> Tensor:
    """The reference: one sequence after the other, scores and softmax in fp32."""
    if rotary is not None:
        assert position_ids is not None, "A rotation needs positions. This is a bug."
        q, k = rotate(q, position_ids, rotary), rotate(k, position_ids, rotary)
    keys, values = kv_cache[layer, :, 0], kv_cache[layer, :, 1]
    store_rows(keys, slot_mapping, k, is_value=False)
    store_rows(values, slot_mapping, v, is_value=True)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    borders, lengths = cu_seqlens.tolist(), cache_seqlens.tolist()
    for index, num_keys in enumerate(lengths):
        rows = slice(borders[index], borders[index + 1])
        past_k = load_rows(keys, block_table[index], num_keys, q.shape[2], is_value=False)
        past_v = load_rows(values, block_table[index], num_keys, q.shape[2], is_value=True)
        out[rows] = attend(q[rows].float(), past_k, past_v, softmax_scale, window, softcap).to(q.dtype)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, window: int, softcap: float) -> Tensor:
    """One sequence: q [len_q, num_heads, head_dim], k and v [len_k, num_kv_heads, head_dim]; their ends are aligned."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    place_q = torch.arange(len(q), device=q.device)[:, None] + (len(k) - len(q))
    distance = place_q - torch.arange(len(k), device=q.device)[None, :]
    is_hidden = distance < 0 if window < 0 else (distance < 0) | (distance > window)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(is_hidden, float("-inf")).softmax(-1), v)


SPEC = define_op(paged_attention, paged_attention_shape, mutates=["kv_cache"])
OP = SPEC.target
