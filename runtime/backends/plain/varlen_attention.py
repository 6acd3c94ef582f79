"""Packed attention as one dense scaled-dot-product call per run of equally long sequences. Nothing is padded."""

from torch import Tensor
from torch.nn import functional

from runtime.backends.plain.runs import iter_runs
from runtime.ops.varlen_attention import position_scores, score_bias
from runtime.ops.varlen_attention import varlen_attention as reference


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
    *,
    out: Tensor,
) -> None:
    has_groups = k.shape[1] != q.shape[1]
    if cu_seqlens_q is not cu_seqlens_k or num_keys is not None or (buckets is not None and has_groups):
        given = (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window, bias)
        out.copy_(reference(*given, num_keys, position_k, position_q, buckets))
        return
    num_heads, head_dim = q.shape[1:]
    for run in iter_runs(cu_seqlens_q.tolist()):
        shape = (run.num_seqs, run.seqlen, num_heads, head_dim)
        lengths = (run.num_seqs, run.seqlen, -1, head_dim)
        dense_q, dense_k, dense_v = (x[run.tokens].view(lengths).transpose(1, 2) for x in (q, k, v))
        added = score_bias(run.seqlen, run.seqlen, causal=causal, window=window, bias=bias, device=q.device)
        if buckets is not None:
            tokens_q, tokens_k = (x[run.tokens].view(lengths).float() for x in (q, k))
            scores = position_scores(tokens_q, tokens_k, position_k, position_q, buckets) * softmax_scale
            added = scores if added is None else scores + added
        mask = None if added is None else added.to(q.dtype)
        attended = functional.scaled_dot_product_attention(
            dense_q, dense_k, dense_v, mask, scale=softmax_scale, enable_gqa=has_groups
        )
        out[run.tokens].view(shape).copy_(attended.transpose(1, 2))
