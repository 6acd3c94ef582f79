"""The blocks that encoder-decoders are made of, over packed tensors and a paged cache.

`hidden_states` is [num_tokens, hidden_size] everywhere. Keys and values of a source lie in the cache like those of a
target: in blocks of its own, in the layer of the decoder that reads them.
"""

from typing import NamedTuple

from torch import Tensor, nn

from models.layers import ACTIVATIONS, Sequences
from models.seq2seq_config import Seq2SeqConfig, StackConfig
from runtime.ops import cross_weights, paged_attention, store_kv, varlen_attention


class TargetStep(NamedTuple):
    """What every layer of a decoder needs to know of a batch that goes on from what a cache holds; see
    `padless::store_kv`, `padless::paged_attention`, and `runtime.batch.Sources`.

    `told`: grows by what each layer with heads of `Seq2SeqConfig.alignment_heads` tells of `weight_rows`.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    slot_mapping: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    source_table: Tensor
    source_seqlens: Tensor
    kv_cache: Tensor
    weight_rows: Tensor
    told: list[Tensor]


class SourceAttention(nn.Module):
    """Each source attends to itself. `bias`: by distance, see `padless::varlen_attention`."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.head_dim = config.encoder.head_dim
        self.softmax_scale = find_softmax_scale(config, config.encoder)
        self.q, self.k, self.v = (build_projection(config, config.encoder) for _ in range(3))
        self.o = build_output(config, config.encoder)

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor | None) -> Tensor:
        q, k, v = (linear(hidden_states).unflatten(1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        attended = varlen_attention.OP(q, k, v, borders, borders, longest, longest, self.softmax_scale, bias=bias)
        return self.o(attended.flatten(1))


class SourceKeys(nn.Module):
    """Of a source, once it is encoded: the keys and values that the decoder's `layer` reads, into the cache."""

    def __init__(self, config: Seq2SeqConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.decoder.head_dim
        self.k, self.v = (build_projection(config, config.decoder) for _ in range(2))

    def forward(self, hidden_states: Tensor, slot_mapping: Tensor, kv_cache: Tensor) -> Tensor:
        """Nothing, [0]."""
        k, v = (linear(hidden_states).unflatten(1, (-1, self.head_dim)) for linear in (self.k, self.v))
        return store_kv.OP(k, v, kv_cache, self.layer, slot_mapping)


class TargetAttention(nn.Module):
    """Each token attends to itself and to the past of its target. `bias`: by distance, as `padless::paged_attention`
    wants it."""

    def __init__(self, config: Seq2SeqConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.decoder.head_dim
        self.softmax_scale = find_softmax_scale(config, config.decoder)
        self.q, self.k, self.v = (build_projection(config, config.decoder) for _ in range(3))
        self.o = build_output(config, config.decoder)

    def forward(self, hidden_states: Tensor, step: TargetStep, bias: Tensor | None) -> Tensor:
        q, k, v = (linear(hidden_states).unflatten(1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        store_kv.OP(k, v, step.kv_cache, self.layer, step.slot_mapping)
        attended = paged_attention.OP(
            *(q, step.kv_cache, self.layer, step.block_table, step.cu_seqlens, step.cache_seqlens),
            *(step.max_seqlen, self.softmax_scale),
            bias=bias,
        )
        return self.o(attended.flatten(1))


class CrossAttention(nn.Module):
    """Each token attends to all of its source, whose keys and values `SourceKeys` have stored."""

    def __init__(self, config: Seq2SeqConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.told_heads = [head for place, head in config.alignment_heads if place == layer]
        self.head_dim = config.decoder.head_dim
        self.softmax_scale = find_softmax_scale(config, config.decoder)
        self.q = build_projection(config, config.decoder)
        self.o = build_output(config, config.decoder)

    def forward(self, hidden_states: Tensor, step: TargetStep) -> Tensor:
        q = self.q(hidden_states).unflatten(1, (-1, self.head_dim))
        attended = paged_attention.OP(
            *(q, step.kv_cache, self.layer, step.source_table, step.cu_seqlens, step.source_seqlens),
            *(step.max_seqlen, self.softmax_scale),
            causal=False,
        )
        if self.told_heads:
            weights = cross_weights.OP(
                *(q, step.kv_cache, self.layer, step.source_table, step.cu_seqlens, step.source_seqlens),
                *(step.weight_rows, self.told_heads, self.softmax_scale),
            )
            step.told.append(weights)
        return self.o(attended.flatten(1))


class FeedForward(nn.Module):
    """down(act(up)), or down(act(gate) * up) (Shazeer, 2020)."""

    def __init__(self, config: Seq2SeqConfig, stack: StackConfig):
        super().__init__()
        width, has_bias = stack.intermediate_size, config.layout.has_bias
        self.gate = nn.Linear(config.hidden_size, width, has_bias) if config.is_gated else None
        self.up = nn.Linear(config.hidden_size, width, has_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(width, config.hidden_size, has_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(hidden_states)))
        return self.down(self.activation(self.gate(hidden_states)) * self.up(hidden_states))


class Residual(nn.Module):
    """A block whose result is added to its input; normalised is what it reads, or the sum."""

    def __init__(self, config: Seq2SeqConfig, block: nn.Module):
        super().__init__()
        self.has_pre_norm = config.layout.has_pre_norms
        self.norm = build_norm(config)
        self.block = block

    def forward(self, hidden_states: Tensor, *context: object) -> Tensor:
        if self.has_pre_norm:
            added: Tensor = hidden_states + self.block(self.norm(hidden_states), *context)
            return added
        normed: Tensor = self.norm(self.block(hidden_states, *context) + hidden_states)
        return normed


class SourceLayer(nn.Module):
    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.attention = Residual(config, SourceAttention(config))
        self.feed_forward = Residual(config, FeedForward(config, config.encoder))

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor | None) -> Tensor:
        rows: Tensor = self.feed_forward(self.attention(hidden_states, sequences, bias))
        return rows


class TargetLayer(nn.Module):
    def __init__(self, config: Seq2SeqConfig, layer: int):
        super().__init__()
        self.attention = Residual(config, TargetAttention(config, layer))
        self.cross_attention = Residual(config, CrossAttention(config, layer))
        self.feed_forward = Residual(config, FeedForward(config, config.decoder))

    def forward(self, hidden_states: Tensor, step: TargetStep, bias: Tensor | None) -> Tensor:
        hidden_states = self.attention(hidden_states, step, bias)
        rows: Tensor = self.feed_forward(self.cross_attention(hidden_states, step))
        return rows


def build_projection(config: Seq2SeqConfig, stack: StackConfig) -> nn.Linear:
    """To the numbers of all heads."""
    return nn.Linear(config.hidden_size, stack.num_heads * stack.head_dim, config.layout.has_bias)


def build_output(config: Seq2SeqConfig, stack: StackConfig) -> nn.Linear:
    return nn.Linear(stack.num_heads * stack.head_dim, config.hidden_size, config.layout.has_bias)


def build_norm(config: Seq2SeqConfig) -> nn.Module:
    norm = nn.RMSNorm if config.layout.has_rms_norm else nn.LayerNorm
    return norm(config.hidden_size, config.norm_eps)


def build_last_norm(config: Seq2SeqConfig) -> nn.Module:
    """Behind the layers of a stack."""
    return build_norm(config) if config.layout.has_pre_norms else nn.Identity()


def find_softmax_scale(config: Seq2SeqConfig, stack: StackConfig) -> float:
    """T5 has none: its weights were drawn so that it needs none."""
    return 1.0 if config.buckets is not None else stack.head_dim**-0.5
