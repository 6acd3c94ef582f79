"""What goes into each linear of a model: the statistics that calibration works from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from runtime.batch import Batch
from runtime.capture import capture
from runtime.engine import Progress
from runtime.engines.transfer import lay_out
from runtime.lazy_module import LazyModule
from runtime.passes.fold_constants import fold_constants
from runtime.passes.fuse_linear_act import fuse_linear_act
from runtime.passes.fuse_qkv import fuse_qkv
from runtime.passes.rewriting import infer_shapes
from runtime.quantization.simulate import run_batches

SAMPLED_ROWS = 512
"""Inputs kept of each linear, on which its error is measured."""


@dataclass(slots=True)
class InputStatistics:
    """Of all inputs [num_rows, in_features] of one linear. Mutable: grows batch by batch."""

    num_rows: int = 0
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))
    """fp64 [in_features], summed over the rows."""
    low: Tensor = field(default_factory=lambda: torch.full((), torch.inf))
    high: Tensor = field(default_factory=lambda: torch.full((), -torch.inf))
    """fp32 [in_features]: least and largest."""
    samples: list[Tensor] = field(default_factory=list)

    @property
    def rms(self) -> Tensor:
        """fp32 [in_features]."""
        return (self.squares / max(self.num_rows, 1)).sqrt().float()

    @property
    def rows(self) -> Tensor:
        """Some of the inputs, fp32 [about SAMPLED_ROWS, in_features]."""
        return torch.cat(self.samples)

    def add(self, x: Tensor, num_samples: int) -> None:
        self.num_rows += len(x)
        self.squares = self.squares.to(x.device) + x.double().square().sum(0)
        self.low = torch.minimum(self.low.to(x.device), x.amin(0))
        self.high = torch.maximum(self.high.to(x.device), x.amax(0))
        chosen = torch.linspace(0, len(x) - 1, min(num_samples, len(x)), device=x.device).round().long()
        self.samples.append(x[chosen])


@dataclass(frozen=True, slots=True)
class Observation:
    """By weight's name, and the first output of the fp32 model, see `run_batches`."""

    inputs: dict[str, InputStatistics]
    output: Tensor
    num_texts: int
    num_tokens: int


def trace_linears(model: nn.Module | LazyModule, device: torch.device) -> GraphModule:
    """The captured graph with its linears fused as engines fuse them, so that they bear the same names."""
    graph_module = capture(model, device)
    for rewrite in (fold_constants, fuse_qkv, fuse_linear_act):
        rewrite(graph_module)
        graph_module.graph.eliminate_dead_code()
        infer_shapes(graph_module)
    return graph_module


def observe(
    graph_module: GraphModule, batches: Sequence[Batch], progress: Progress, num_rows: int = SAMPLED_ROWS
) -> Observation:
    """Run the batches in fp32, and keep some `num_rows` inputs of each linear. A weight that layers share gets the
    statistics of all of them together."""
    inputs: dict[str, InputStatistics] = {}
    num_samples = -(-num_rows // max(len(batches), 1))

    def compute(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs.setdefault(name, InputStatistics()).add(x, num_samples)
        return functional.linear(x, weight, bias)

    output = run_batches(graph_module, batches, compute, progress, "observing")
    num_texts, num_tokens = sum(batch.num_seqs for batch in batches), sum(batch.num_tokens for batch in batches)
    return Observation(inputs, output, num_texts, num_tokens)


def random_batch(vocab_size: int, num_seqs: int, seqlen: int) -> Batch:
    """Sequences of random tokens, the same each time: what to observe where there are no texts."""
    input_ids = np.random.default_rng(0).integers(0, vocab_size, num_seqs * seqlen)
    return lay_out([seqlen] * num_seqs, input_ids)
