"""`padless::paged_attention`: let each new token look at keys and values in the cache, which `padless::store_kv` wrote.

    q [num_tokens, num_heads, head_dim], kv_cache as in `runtime.kv_cache.layout` -> like q

`block_table` int32 [num_seqs, max_blocks] says which blocks of `layer` hold a sequence's keys, `cache_seqlens` int32
[num_seqs] how many those are. The tokens of one sequence lie between two borders of `cu_seqlens` int32 [num_seqs + 1].
Several heads of q share one of k (Ainslie et al., 2023): head h reads kv head h // (num_heads / num_kv_heads).

`causal`: the last token of a sequence is the last of its keys, and each token sees those up to itself. Without it each
token sees all, as an encoder-decoder's looks at its source: there may be fewer keys than tokens, and several sequences
with the same row of blocks. A token that sees no key gets 0.

With `rotary`, fp32 [max_positions, rotary_dim], the heads of q are turned first, by the rows of `position_ids`, as
`padless::rotate` does. `softcap` over 0: scaled scores s become softcap * tanh(s / softcap). Two go with `causal`
alone: `window`, how many keys behind itself a token sees, -1 for all; and `bias`, fp32 [num_heads, reach], which is
added to scores by how far the key lies behind the token, 0 for the token itself (T5: Raffel et al., 2020). A sequence
may have up to `reach` keys.

Paging: Kwon et al., 2023 (vLLM).
"""

import torch
from torch import Tensor

from runtime.kv_cache.layout import load_rows
from runtime.ops.rotate import rotate
from runtime.ops.spec import define_op
from runtime.ops.varlen_attention import find_distances


def paged_attention_shape(q: Tensor, causal: bool, window: int, bias: Tensor | None) -> Tensor:
    """Raises ValueError where what needs an order of queries and keys is asked for without one."""
    if not causal and (window >= 0 or bias is not None):
        raise ValueError("paged_attention: window and bias need causal=True. Leave them out where all keys are seen")
    return torch.empty_like(q, memory_format=torch.contiguous_format)


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
) -> Tensor:
    """The reference: one sequence after the other, scores and softmax in fp32."""
    out = paged_attention_shape(q, causal, window, bias)
    if rotary is not None:
        assert position_ids is not None, "A rotation needs positions. This is a bug."
        q = rotate(q, position_ids, rotary)
    borders, lengths = cu_seqlens.tolist(), cache_seqlens.tolist()
    for index, num_keys in enumerate(lengths):
        rows = slice(borders[index], borders[index + 1])
        k, v = (
            load_rows(kv_cache[layer, :, kind], block_table[index], num_keys, q.shape[2], is_value=kind == 1)
            for kind in range(2)
        )
        out[rows] = attend(q[rows].float(), k, v, softmax_scale, causal, window, softcap, bias).to(q.dtype)
    return out


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float,
    causal: bool,
    window: int,
    softcap: float,
    bias: Tensor | None,
) -> Tensor:
    """One sequence in fp32: q [len_q, num_heads, head_dim], k and v [len_k, num_kv_heads, head_dim]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        behind = -find_distances(len(q), len(k), q.device)
        if bias is not None:
            scores = scores + bias_by_distance(bias, behind)
        is_hidden = behind < 0 if window < 0 else (behind < 0) | (behind > window)
        scores = scores.masked_fill(is_hidden, float("-inf"))
    weights = scores.softmax(-1).masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v)


def bias_by_distance(bias: Tensor, behind: Tensor) -> Tensor:
    """[num_heads, len_q, len_k]; of keys that lie ahead anything. Raises ValueError where a sequence is too long."""
    len_k, reach = behind.shape[1], bias.shape[1]
    if len_k > reach:
        raise ValueError(f"a sequence of {len_k} tokens is over the {reach} that the attention bias reaches")
    return bias[:, behind.clamp_min(0)]


SPEC = define_op(paged_attention, paged_attention_shape)
OP = SPEC.target
