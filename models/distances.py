"""Scores biased by distance in T5's buckets (Raffel et al., 2019): a number for each bucket and head."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Buckets:
    """`count`: of all distances. Those of `farthest` or more share the last bucket of their direction."""

    count: int
    farthest: int


class DistanceBias(nn.Module):
    """fp32 [num_heads, distances], made of a table [buckets, num_heads].

    Sequences have up to `reach` tokens. `is_causal`: distances are 0 to reach - 1 behind the query, as
    `padless::paged_attention` wants them; else 1 - reach to reach - 1, as `padless::varlen_attention` does.
    """

    def __init__(self, buckets: Buckets, num_heads: int, reach: int, *, is_causal: bool = False):
        super().__init__()
        self.rows = nn.Embedding(buckets.count, num_heads)
        # On the CPU whatever the default device is: models are built on `meta`, and no checkpoint fills this.
        if is_causal:
            bucket_ids = bucket_distances(torch.arange(reach, device="cpu"), buckets.count, buckets.farthest)
        else:
            bucket_ids = bucket_both_ways(torch.arange(1 - reach, reach, device="cpu"), buckets)
        self.register_buffer("bucket_ids", bucket_ids, persistent=False)

    def forward(self) -> Tensor:
        bias: Tensor = self.rows(self.bucket_ids)
        return bias.transpose(0, 1).contiguous()


def bucket_both_ways(distances: Tensor, buckets: Buckets) -> Tensor:
    """Key position less query position, [n] -> [n]: half of the buckets are for keys behind the query, half for keys
    ahead of it."""
    half = buckets.count // 2
    return bucket_distances(distances.abs(), half, buckets.farthest) + (distances > 0).long() * half


def bucket_distances(far: Tensor, count: int, farthest: int) -> Tensor:
    """Distances of at least 0, [n] -> [n]: half of the buckets are exact, the others grow with the logarithm."""
    exact = count // 2
    # The smaller ones are not used: 1 keeps the logarithm finite.
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(farthest / exact)
    grown = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
    return torch.where(far < exact, far, grown)
