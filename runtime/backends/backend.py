"""What the rest of the runtime knows of a target: what it computes on, by which kernels, and its own last passes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from runtime.config import Precision
from runtime.kv_cache.layout import KVOrder
from runtime.quantization.weights import RoundChannels

Kernel = Callable[..., object]
"""Called with the op's own arguments, and `out`."""
Pass = Callable[[GraphModule], None]


@dataclass(frozen=True, slots=True)
class Backend:
    """`name`: torch, or the instruction set of compiled kernels."""

    name: str
    device: torch.device
    kernels: Mapping[object, Kernel]
    """By op: what computes into memory that it is given. Other ops run too, in memory of their own."""
    passes: tuple[tuple[str, Pass], ...] = ()
    """Behind those that all backends have, with their names."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
    """What it computes in; of these `auto` takes those that the device is fast in."""
    int8_dtype: torch.dtype = torch.bfloat16
    """What int8 layers of encoders hand on."""
    keeps_linears: bool = False
    """Linear layers that are not int8 stay fp32 in 16-bit graphs."""
    hands_on_rows: bool = True
    """int8 layers, norms and gates quantise their results for the int8 layers that read them; else each of these does
    it for itself."""
    overflow_free: bool = False
    """int8 weights have to be small enough for sums of 16 bits."""
    kv_order: KVOrder = "panels"
    """How the KV cache of generators lies."""
    round_channels: RoundChannels | None = None
    """Rounds weights to int8; None: torch does."""
