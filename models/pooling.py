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


def pool_rows(hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor, modes: Sequence[str]) -> Tensor:
    """[num_tokens, hidden_size] -> fp32 [num_seqs, len(modes) * hidden_size], the modes' rows side by side."""
    rows = [pool_mode(hidden_states, position_ids, cu_seqlens, mode) for mode in modes]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def pool_mode(hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    if mode == "mean_sqrt_len":
        return pool.OP(hidden_states, cu_seqlens, "mean") * count_tokens(cu_seqlens).sqrt()
    if mode == "weighted_mean":
        return pool_weighted(hidden_states, position_ids, cu_seqlens)
    return pool.OP(hidden_states, cu_seqlens, mode)


def pool_weighted(hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The n-th token of a text weighs n (SGPT, Muennighoff, 2022): the weights of n tokens add up to n (n + 1) / 2."""
    weighted = hidden_states.float() * (position_ids + 1).float()[:, None]
    return pool.OP(weighted, cu_seqlens, "mean") * (2 / (count_tokens(cu_seqlens) + 1))


def count_tokens(cu_seqlens: Tensor) -> Tensor:
    """fp32 [num_seqs, 1]."""
    return (cu_seqlens[1:] - cu_seqlens[:-1]).float()[:, None]
