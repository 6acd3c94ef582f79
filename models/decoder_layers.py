"""The blocks decoders are made of, over packed tensors and a paged cache.

`hidden_states` is [num_tokens, hidden_size] everywhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoder_config import DecoderConfig
from models.layers import ACTIVATIONS
from models.rotary import build_table
from runtime.kv_cache.layout import KVLayout
from runtime.ops import paged_attention


class Step(NamedTuple):
    """What every layer's attention needs to know of a batch; see `padless::paged_attention`."""

    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    slot_mapping: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    rotary: Tensor | None
    kv_cache: Tensor


class CausalAttention(nn.Module):
    """Each token attends to itself and to the past of its sequence, which lies in the cache's `layer`."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.layer = layer
        self.head_dim = config.head_dim
        self.softmax_scale = config.softmax_scales[layer]
        self.window = config.windows[layer]
        self.softcap = config.attention_softcap
        self.q = nn.Linear(config.hidden_size, width, config.has_qkv_bias)
        self.k = nn.Linear(config.hidden_size, kv_width, config.has_qkv_bias)
        self.v = nn.Linear(config.hidden_size, kv_width, config.has_qkv_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps) if config.has_qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps) if config.has_qk_norm else nn.Identity()
        self.o = nn.Linear(width, config.hidden_size, config.has_o_bias)

    def forward(self, hidden_states: Tensor, step: Step) -> Tensor:
        q, k, v = (linear(hidden_states).unflatten(1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        attended = paged_attention.OP(
            self.q_norm(q),
            self.k_norm(k),
            v,
            step.kv_cache,
            self.layer,
            step.slot_mapping,
            step.block_table,
            step.cu_seqlens,
            step.cache_seqlens,
            step.max_seqlen,
            self.softmax_scale,
            step.position_ids,
            step.rotary,
            self.window,
            self.softcap,
        )
        return self.o(attended.flatten(1))


class DecoderFeedForward(nn.Module):
    """down(act(up)), or down(act(gate) * up) (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width, has_bias = config.intermediate_size, config.has_mlp_bias
        self.gate = nn.Linear(config.hidden_size, width, has_bias) if config.is_gated else None
        self.up = nn.Linear(config.hidden_size, width, has_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(width, config.hidden_size, has_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(hidden_states)))
        return self.down(self.activation(self.gate(hidden_states)) * self.up(hidden_states))


class DecoderLayer(nn.Module):
    """Pre-LN: each of the two blocks gets its input normalised, and what it gives is added to that input."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = CausalAttention(config, layer)
        self.attention_post_norm = build_norm(config) if config.has_post_norms else nn.Identity()
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = DecoderFeedForward(config)
        self.feed_forward_post_norm = build_norm(config) if config.has_post_norms else nn.Identity()

    def forward(self, hidden_states: Tensor, step: Step) -> Tensor:
        attended = self.attention(self.attention_norm(hidden_states), step)
        hidden_states = hidden_states + self.attention_post_norm(attended)
        fed = self.feed_forward(self.feed_forward_norm(hidden_states))
        return hidden_states + self.feed_forward_post_norm(fed)


def build_norm(config: DecoderConfig) -> nn.Module:
    kind = nn.RMSNorm if config.has_rms_norm else nn.LayerNorm
    return kind(config.hidden_size, config.norm_eps)


class Decoder(nn.Module):
    """A causal language model over packed sequences: token ids to logits, the module that engines are built from.

    `kv_cache` is made by `kv_layout`, and changed; the other arguments are those of `Batch` and `Paging`.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.norm = build_norm(config)
        self.lm_head = None if config.is_tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        rotary = None if config.rotary is None else build_table(config.rotary, config.max_position_embeddings)
        self.rotary: Tensor | None
        self.register_buffer("rotary", rotary, persistent=False)

    def kv_layout(self, dtype: torch.dtype) -> KVLayout:
        return KVLayout(self.config.num_layers, self.config.num_kv_heads, self.config.head_dim, dtype)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[num_tokens, hidden_size]; families whose positions are rows add those here."""
        return self.embedding(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        slot_mapping: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        logit_rows: Tensor,
        kv_cache: Tensor,
    ) -> dict[str, Tensor]:
        """`logits`: fp32 [num_logits, vocab_size], of the tokens `logit_rows`."""
        step = Step(
            position_ids, cu_seqlens, max_seqlen, slot_mapping, block_table, cache_seqlens, self.rotary, kv_cache
        )
        hidden_states = self.embed(input_ids, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, step)
        chosen = self.norm(hidden_states.index_select(0, logit_rows))
        head = self.embedding if self.lm_head is None else self.lm_head
        logits = functional.linear(chosen, head.weight).float()
        if self.config.logit_softcap:
            logits = torch.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        return {"logits": logits}
