"""Token rows to one row per text, in the modes of sentence-transformers' Pooling; everything here is fp32.

`padless::pool` has the plain ones. The others are its mean of rows that were weighted before, or are scaled after.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.keys import ModelDirectoryError
from runtime.ops import pool

WEIGHTED = ("mean_sqrt_len", "weighted_mean")
MODES = (*pool.POOLINGS, *WEIGHTED)


def check_modes(modes: Sequence[str]) -> None:
    """Raises ModelDirectoryError for a name that is none of MODES."""
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ModelDirectoryError(f"pooling {', '.join(unknown)} is not supported; supported are {', '.join(MODES)}")


def pool_rows(
    hidden_states: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    modes: Sequence[str],
    num_prompt_tokens: Tensor | None = None,
) -> Tensor:
    """[num_tokens, hidden_size] -> fp32 [num_seqs, len(modes) * hidden_size], the modes' rows side by side.

    `num_prompt_tokens`: int32 [num_seqs], tokens at the beginning of each text that are left out.
    """
    rows = [pool_mode(hidden_states, position_ids, cu_seqlens, mode, num_prompt_tokens) for mode in modes]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def pool_mode(
    hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor, mode: str, num_prompt_tokens: Tensor | None
) -> Tensor:
    if mode == "mean_sqrt_len":
        num_kept = count_tokens(cu_seqlens, num_prompt_tokens)
        return pool.OP(hidden_states, cu_seqlens, "mean", False, num_prompt_tokens) * num_kept.sqrt()
    if mode == "weighted_mean":
        return pool_weighted(hidden_states, position_ids, cu_seqlens, num_prompt_tokens)
    return pool.OP(hidden_states, cu_seqlens, mode, False, num_prompt_tokens)


def pool_weighted(
    hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor, num_prompt_tokens: Tensor | None
) -> Tensor:
    """The n-th token of a text weighs n, also where those before it are left out (SGPT, Muennighoff, 2022): the weights
    of tokens p + 1 to n add up to (n - p) (n + p + 1) / 2."""
    weighted = hidden_states.float() * (position_ids + 1).float()[:, None]
    num_tokens = count_tokens(cu_seqlens, None)
    num_skipped = 0.0 if num_prompt_tokens is None else num_prompt_tokens.float()[:, None]
    scale = 2 / (num_tokens + num_skipped + 1)
    return pool.OP(weighted, cu_seqlens, "mean", False, num_prompt_tokens) * scale


def count_tokens(cu_seqlens: Tensor, num_prompt_tokens: Tensor | None) -> Tensor:
    """Those that are not left out: fp32 [num_seqs, 1]."""
    num_tokens = cu_seqlens[1:] - cu_seqlens[:-1]
    return (num_tokens if num_prompt_tokens is None else num_tokens - num_prompt_tokens).float()[:, None]
