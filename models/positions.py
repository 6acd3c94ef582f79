"""Rows of sines and cosines for positions (Vaswani et al., 2017), as three code bases have made them.

In each the sines of all frequencies come first, then their cosines; published weights do not have them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class PositionTable(nn.Module):
    """Positions [num_tokens] to the rows of a fixed table: [num_tokens, width]."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, position_ids: Tensor) -> Tensor:
        return functional.embedding(position_ids, self.get_buffer("rows"))


def marian_sinusoids(num_rows: int, width: int) -> Tensor:
    """fp32 [num_rows, width], as of Marian: frequencies 10000^(-2 i / width), in float64.

    On the CPU whatever the default device is: models are built on `meta`, and no checkpoint fills this.
    """
    frequencies = 10000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64, device="cpu") / width)
    return make_rows(torch.arange(num_rows, dtype=torch.float64, device="cpu"), frequencies)


def fairseq_sinusoids(num_rows: int, width: int) -> Tensor:
    """The same of fairseq and tensor2tensor: 10000^(-i / (width / 2 - 1)), and all in fp32: angles of far positions are
    the ones that models were trained with."""
    step = math.log(10000) / (width // 2 - 1)
    frequencies = torch.exp(torch.arange(width // 2, device="cpu").float() * -step)
    return make_rows(torch.arange(num_rows, device="cpu").float(), frequencies)


def make_rows(positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
