"""Rotary positions (Su et al., 2021) as one table of cosines and sines, and the ways to stretch them to longer texts.

Element i of a head turns together with i + dim / 2, as in transformers, by position * frequency[i].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """`scaling` is a name in FREQUENCIES and says which of the fields behind `factor` count."""

    dim: int
    """Elements of a head that turn; even."""
    theta: float
    scaling: str = "default"
    factor: float = 1.0
    """How many times longer texts may be than those of the first training."""
    original_max_positions: int = 0
    """Length of those."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines, and so scores by its square."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """dim / 2 numbers each."""


def build_table(config: RotaryConfig, num_positions: int, longest_text: int | None = None) -> Tensor:
    """fp32 [num_positions, dim], cosines and then sines, for `padless::store_kv` and `padless::paged_attention`.

    `longest_text` that is served, in tokens; None: as many as positions. On the CPU whatever the default device is:
    models are built on `meta`, and no checkpoint fills this.
    """
    with torch.device("cpu"):
        frequencies = FREQUENCIES[config.scaling](config, longest_text or num_positions)
        angles = torch.arange(num_positions).float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1) * config.attention_factor


def compute_default(config: RotaryConfig, longest_text: int) -> Tensor:
    """Wavelengths from 2 pi to 2 pi * theta: [dim / 2], like all of these."""
    return 1.0 / config.theta ** (torch.arange(0, config.dim, 2).float() / config.dim)


def compute_linear(config: RotaryConfig, longest_text: int) -> Tensor:
    """Position interpolation (Chen et al., 2023)."""
    return compute_default(config, longest_text) / config.factor


def compute_llama3(config: RotaryConfig, longest_text: int) -> Tensor:
    """Llama 3.1 (Grattafiori et al., 2024): long waves are interpolated, short ones kept, those between are mixed."""
    frequencies = compute_default(config, longest_text)
    waves = config.original_max_positions * frequencies / (2 * math.pi)  # how many fit into a text
    kept = (waves - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / config.factor)


def compute_yarn(config: RotaryConfig, longest_text: int) -> Tensor:
    """YaRN (Peng et al., 2023): as llama3, but what is kept falls linearly with the index of the frequency."""
    first, last = (find_index(config, waves) for waves in (config.beta_fast, config.beta_slow))
    if config.is_truncated:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.dim - 1)
    width = last - first if last != first else 0.001
    kept = 1 - ((torch.arange(config.dim // 2) - first) / width).clamp(0, 1)
    frequencies = compute_default(config, longest_text)
    return frequencies * (kept + (1 - kept) / config.factor)


def find_index(config: RotaryConfig, waves: float) -> float:
    """The index, not whole, of the frequency of which that many waves fit into a text of the first training."""
    length = config.original_max_positions / (waves * 2 * math.pi)
    return config.dim * math.log(length) / (2 * math.log(config.theta))


def compute_longrope(config: RotaryConfig, longest_text: int) -> Tensor:
    """LongRoPE (Ding et al., 2024): a factor for each frequency, found by search.

    There are two sets of them. transformers takes that for the length that a text has just now; here all texts share a
    cache, and what is in it must fit any length it may grow to: the long ones as soon as longer texts are served.
    """
    factors = config.long_factors if longest_text > config.original_max_positions else config.short_factors
    waves = config.theta ** (torch.arange(0, config.dim, 2).float() / config.dim)
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * waves)


FREQUENCIES: dict[str, Callable[[RotaryConfig, int], Tensor]] = {
    "default": compute_default,
    # Dynamic NTK changes nothing up to the length of the first training, and no more is ever served with it.
    "dynamic": compute_default,
    "linear": compute_linear,
    "llama3": compute_llama3,
    "longrope": compute_longrope,
    "yarn": compute_yarn,
}


def yarn_attention_factor(factor: float, scales: Sequence[float]) -> float:
    """YaRN's, or DeepSeek's where there are two scales."""

    def grow(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    return grow(scales[0]) / grow(scales[1]) if len(scales) == 2 else grow(1.0)


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    return math.sqrt(1 + math.log(factor) / math.log(original_max_positions)) if factor > 1 else 1.0
