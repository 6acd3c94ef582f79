"""Pooling by runs of equally long sequences, straight into fp32 rows."""

import torch
from torch import Tensor

from runtime.backends.plain.runs import iter_runs
from runtime.ops.pool import pool as pool_each


def pool(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    normalize: bool = False,
    num_prompt_tokens: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    if num_prompt_tokens is None:
        pool_rows(hidden_states, cu_seqlens, mode, out)
    else:
        out.copy_(pool_each(hidden_states, cu_seqlens, mode, False, num_prompt_tokens))
    if normalize:
        out.div_(torch.linalg.vector_norm(out, dim=1, keepdim=True).clamp_min_(1e-12))


def pool_rows(hidden_states: Tensor, cu_seqlens: Tensor, mode: str, out: Tensor) -> None:
    if mode in ("cls", "last"):
        rows = cu_seqlens[:-1] if mode == "cls" else cu_seqlens[1:] - 1
        out.copy_(hidden_states[rows.long()])
        return
    for run in iter_runs(cu_seqlens.tolist()):
        dense = hidden_states[run.tokens].view(run.num_seqs, run.seqlen, -1)
        if mode == "mean":
            torch.mean(dense, 1, dtype=torch.float32, out=out[run.seqs])
        else:
            out[run.seqs].copy_(dense.amax(1))
