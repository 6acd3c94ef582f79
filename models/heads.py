"""What turns token rows into answers: pooled embeddings, or class logits. Everything here is fp32."""

import inspect
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from models.layers import ACTIVATIONS
from runtime.ops import pool


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A sentence-transformers Dense module."""

    in_features: int
    out_features: int
    has_bias: bool
    activation: str
    """A name in `layers.ACTIVATIONS`, or none."""


class EmbeddingHead(nn.Module):
    """Pool, then the Dense modules, then scale to length 1 if asked."""

    def __init__(self, pooling: str, dense: tuple[DenseSpec, ...], normalize: bool):
        super().__init__()
        self.pooling = pooling
        self.normalize = normalize
        self.activations = [spec.activation for spec in dense]
        self.dense = nn.ModuleList(nn.Linear(spec.in_features, spec.out_features, spec.has_bias) for spec in dense)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        """`embeddings`: fp32 [num_seqs, width]."""
        rows = pool.OP(hidden_states, cu_seqlens, self.pooling)
        for linear, activation in zip(self.dense, self.activations, strict=True):
            rows = linear(rows)
            if activation != "none":
                rows = ACTIVATIONS[activation](rows)
        return {"embeddings": functional.normalize(rows, dim=-1) if self.normalize else rows}


class ClassificationHead(nn.Module):
    """Logits from the first token: dense, activation, output. The families differ in names and activation only."""

    def __init__(self, hidden_size: int, num_labels: int, activation: str):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation]
        self.output = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        """`logits`: fp32 [num_seqs, num_labels]."""
        first = pool.OP(hidden_states, cu_seqlens, "cls")
        return {"logits": self.output(self.activation(self.dense(first)))}


class TextModel(nn.Module):
    """An encoder and its head: the module engines are built from. Returns what the head does.

    Beside the token rows a head may read `cu_seqlens` and `num_prompt_tokens`: it declares them as parameters.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.head_inputs = [name for name in inspect.signature(head.forward).parameters if name != "hidden_states"]

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        num_prompt_tokens: Tensor,
    ) -> dict[str, Tensor]:
        hidden_states = self.encoder(input_ids, position_ids, token_type_ids, cu_seqlens, max_seqlen)
        inputs = {"cu_seqlens": cu_seqlens, "num_prompt_tokens": num_prompt_tokens}
        return self.head(hidden_states, **{name: inputs[name] for name in self.head_inputs})
