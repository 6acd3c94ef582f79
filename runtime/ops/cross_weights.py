"""`padless::cross_weights`: how much some tokens look at each token of their source, head by head: the weights of
`padless::paged_attention` without an order, which that op never writes.

    q [num_tokens, num_heads, head_dim], kv_cache as in `runtime.kv_cache.layout`, weight_rows int64 [num_weight_rows]
        -> fp32 [num_weight_rows, len(heads), BLOCK_SIZE * max_source_blocks]

`source_table`, `source_seqlens`, `cu_seqlens`, `layer`, `softmax_scale`: as `paged_attention` takes them for sources.
`weight_rows`: the tokens of the batch that are asked about, in ascending order; often none, which costs next to
nothing. `heads`: those of q that are, each with keys of its own. Behind a source's end, and of one without keys, all
is 0.

Computed as one product for all sequences, with queries filled up to as many as the sequence with most of them has: of
beams there is one each, and of a transcript that is aligned there is one sequence.
"""

import torch
from torch import Tensor

from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import read_blocks
from runtime.ops.spec import define_op


def cross_weights_shape(source_table: Tensor, weight_rows: Tensor, heads: list[int]) -> Tensor:
    num_keys = source_table.shape[1] * BLOCK_SIZE
    return weight_rows.new_empty(weight_rows.shape[0], len(heads), num_keys, dtype=torch.float32)


def cross_weights(
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    source_table: Tensor,
    cu_seqlens: Tensor,
    source_seqlens: Tensor,
    weight_rows: Tensor,
    heads: list[int],
    softmax_scale: float,
) -> Tensor:
    """The reference, and what all engines run: its result is as wide as sources are long, which no plan knows."""
    if not len(weight_rows):
        return cross_weights_shape(source_table, weight_rows, heads)
    owners = torch.searchsorted(cu_seqlens, weight_rows.int(), right=True) - 1
    seqs, owner, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(owner), device=q.device) - (counts.cumsum(0) - counts)[owner]
    chosen = q[weight_rows][:, heads].float()
    queries = chosen.new_zeros(len(seqs), int(counts.max()), *chosen.shape[1:])
    queries[owner, place] = chosen
    found = kv_cache[layer, :, 0][source_table[seqs].flatten()][:, heads]
    keys = read_blocks(found, q.shape[2], is_value=False).unflatten(0, (len(seqs), -1))
    scores = torch.einsum("sqhd,skhd->sqhk", queries, keys) * softmax_scale
    is_behind = torch.arange(keys.shape[1], device=q.device) >= source_seqlens[seqs, None]
    weights = scores.masked_fill(is_behind[:, None, None], float("-inf")).softmax(-1)
    return weights.masked_fill(is_behind[:, None, None], 0.0)[owner, place]


SPEC = define_op(cross_weights, cross_weights_shape)
OP = SPEC.target
