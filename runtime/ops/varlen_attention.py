"""`padless::varlen_attention`: attention over packed sequences, each looking at itself alone.

    q [num_tokens_q, num_heads, head_dim], k and v [num_tokens_k, num_kv_heads, head_dim] -> like q

`cu_seqlens_q`, `cu_seqlens_k`: int32 [num_seqs + 1], the borders of the sequences. `causal` aligns the last query
with the last key. `window`: how many keys to each side of itself a query sees; -1 for all. `bias`: [num_heads,
2 * reach - 1], added to the scaled scores by distance: entry `reach - 1 + (key position - query position)`. `num_keys`:
int32 [num_seqs], how many keys of each sequence, from its first on, are seen; none for all.

Several heads of q share one of k (Ainslie et al., 2023): head h reads kv head h // (num_heads / num_kv_heads).

`position_k`, `position_q`: [num_buckets, num_heads, head_dim], or with one head for all. `buckets`: int32
[2 * reach - 1], a row of these for each distance, in the order of `bias`; as distances grow they all rise or all fall,
or stay. What is scaled is the query times the key, and the query times the distance's row of `position_k`, and the key
times that of `position_q` (DeBERTa: He et al., 2020; without the third: Shaw et al., 2018).

A key that is masked, or whose bias is -inf, counts for nothing. A query that sees no key gets 0.

The names are those of FlashAttention's varlen interface (Dao, 2023).
"""

import torch
from torch import Tensor

from runtime.ops.spec import define_op


def varlen_attention_shape(q: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool = False,
    window: int = -1,
    bias: Tensor | None = None,
    num_keys: Tensor | None = None,
    position_k: Tensor | None = None,
    position_q: Tensor | None = None,
    buckets: Tensor | None = None,
) -> Tensor:
    """The reference: one sequence after the other, scores and softmax in fp32."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    borders_q, borders_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    seen = None if num_keys is None else num_keys.tolist()
    for index in range(len(borders_q) - 1):
        rows_q = slice(borders_q[index], borders_q[index + 1])
        rows_k = slice(borders_k[index], borders_k[index + 1])
        scores = torch.einsum("qhd,khd->hqk", q[rows_q].float(), k[rows_k].float())
        if buckets is not None:
            scores += position_scores(q[rows_q].float(), k[rows_k].float(), position_k, position_q, buckets)
        scores *= softmax_scale
        added = score_bias(scores.shape[1], scores.shape[2], causal=causal, window=window, bias=bias, device=q.device)
        if added is not None:
            scores += added
        if seen is not None:
            scores[:, :, seen[index] :] = float("-inf")
        weights = scores.softmax(-1).masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
        out[rows_q] = torch.einsum("hqk,khd->qhd", weights, v[rows_k].float()).to(q.dtype)
    return out


def score_bias(
    len_q: int, len_k: int, *, causal: bool, window: int, bias: Tensor | None, device: torch.device
) -> Tensor | None:
    """What is added to the scores of one sequence: [len_q, len_k] or [num_heads, len_q, len_k] fp32; None for nothing.

    Raises ValueError where a distance is out of the reach of `bias`.
    """
    if not causal and window < 0 and bias is None:
        return None
    distance = find_distances(len_q, len_k, device)
    added = torch.zeros(len_q, len_k, device=device)
    if causal:
        added = added.masked_fill(distance > 0, float("-inf"))
    if window >= 0:
        added = added.masked_fill(distance.abs() > window, float("-inf"))
    if bias is None:
        return added
    return added + bias.float()[:, distance + find_reach(bias, max(len_q, len_k)) - 1]


def find_distances(len_q: int, len_k: int, device: torch.device) -> Tensor:
    """Key position less query position, [len_q, len_k].

    With a cache there are more keys than queries: the last query belongs to the last key.
    """
    return torch.arange(len_k, device=device) - torch.arange(len_k - len_q, len_k, device=device)[:, None]


def position_scores(
    q: Tensor, k: Tensor, position_k: Tensor | None, position_q: Tensor | None, buckets: Tensor
) -> Tensor:
    """Queries and keys by their distances, before they are scaled; q [..., len_q, num_heads, head_dim], and k alike, to
    fp32 [..., num_heads, len_q, len_k].

    Raises ValueError where a distance is out of the reach of `buckets`.
    """
    len_q, len_k = q.shape[-3], k.shape[-3]
    distances = find_distances(len_q, len_k, q.device)
    rows = buckets.long()[distances + find_reach(buckets, max(len_q, len_k)) - 1]
    scores = q.new_zeros(*q.shape[:-3], q.shape[-2], len_q, len_k)
    if position_k is not None:
        by_bucket = torch.einsum("...qhd,bhd->...hqb", q, position_k.to(q.dtype).expand(-1, q.shape[-2], -1))
        scores += by_bucket.gather(-1, rows.expand_as(scores))
    if position_q is not None:
        by_bucket = torch.einsum("...khd,bhd->...hbk", k, position_q.to(k.dtype).expand(-1, q.shape[-2], -1))
        scores += by_bucket.gather(-2, rows.expand_as(scores))
    return scores


def find_reach(table: Tensor, longest: int) -> int:
    """The longest sequence that a table has all distances for. Raises ValueError where `longest` is over it."""
    reach = (table.shape[-1] + 1) // 2
    if longest > reach:
        raise ValueError(
            f"a sequence of {longest} tokens is over the {reach} that the attention bias or the buckets reach"
        )
    return reach


SPEC = define_op(varlen_attention, varlen_attention_shape)
OP = SPEC.target
