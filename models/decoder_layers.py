"""The blocks decoders are made of, over packed tensors and a paged cache.

`hidden_states` is [num_tokens, hidden_size] everywhere.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoder_config import DecoderConfig
from models.experts import ExpertsFeedForward
from models.layers import ACTIVATIONS, Sequences
from models.rotary import build_table
from runtime.kv_cache.layout import KVLayout
from runtime.ops import paged_attention, rotate, store_kv, varlen_attention

Tables = tuple[Tensor | None, ...]
"""Of each layer: what turns heads by their positions, see `models.rotary`."""


class Step(NamedTuple):
    """What every layer's attention needs to know of a batch that goes on from what a cache holds; see
    `padless::store_kv` and `padless::paged_attention`."""

    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    slot_mapping: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    tables: Tables
    kv_cache: Tensor

    def attend(self, layer: "CausalAttention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        table = self.tables[layer.layer]
        store_kv.OP(k, v, self.kv_cache, layer.layer, self.slot_mapping, self.position_ids, table)
        return paged_attention.OP(
            q,
            self.kv_cache,
            layer.layer,
            self.block_table,
            self.cu_seqlens,
            self.cache_seqlens,
            self.max_seqlen,
            layer.softmax_scale,
            self.position_ids,
            table,
            window=layer.window,
            softcap=layer.softcap,
        )


class Reading(NamedTuple):
    """The same of a batch of whole texts, of which nothing is kept; see `padless::varlen_attention`."""

    position_ids: Tensor
    sequences: Sequences
    tables: Tables
    is_causal: bool

    def attend(self, layer: "CausalAttention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        table = self.tables[layer.layer]
        if table is not None:
            q, k = (rotate.OP(x, self.position_ids, table) for x in (q, k))
        borders, longest = self.sequences.cu_seqlens, self.sequences.max_seqlen
        return varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, layer.softmax_scale, self.is_causal, layer.window),
            num_keys=self.sequences.num_keys,
        )


class CausalAttention(nn.Module):
    """Each token attends to itself and to the past of its sequence, in the cache's `layer` or in the batch."""

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
        self.qk_norm = config.layout.qk_norm
        self.q_norm, self.k_norm = (build_qk_norm(config, each) for each in (width, kv_width))
        self.o = nn.Linear(width, config.hidden_size, config.has_o_bias)

    def forward(self, hidden_states: Tensor, step: Step | Reading) -> Tensor:
        q, k, v = (linear(hidden_states) for linear in (self.q, self.k, self.v))
        if self.qk_norm == "row":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (each.unflatten(1, (-1, self.head_dim)) for each in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o(step.attend(self, q, k, v).flatten(1))


def build_qk_norm(config: DecoderConfig, width: int) -> nn.Module:
    """`width`: of all heads."""
    sizes = {"head": config.head_dim, "row": width}
    return nn.RMSNorm(sizes[config.layout.qk_norm], config.norm_eps) if config.layout.qk_norm else nn.Identity()


class DecoderFeedForward(nn.Module):
    """down(act(up)), or down(act(gate) * up) (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width, has_bias = config.intermediate_size, config.has_mlp_bias
        self.gate = nn.Linear(config.hidden_size, width, has_bias) if config.layout.is_gated else None
        self.up = nn.Linear(config.hidden_size, width, has_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(width, config.hidden_size, has_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(hidden_states)))
        return self.down(self.activation(self.gate(hidden_states)) * self.up(hidden_states))


def build_feed_forward(config: DecoderConfig, layer: int) -> nn.Module:
    experts = config.experts
    if experts is None or not experts.layers[layer]:
        return DecoderFeedForward(config)
    shared = replace(config, intermediate_size=experts.shared_width) if experts.shared_width else None
    return ExpertsFeedForward(
        *(experts, config.hidden_size, config.activation), shared=None if shared is None else DecoderFeedForward(shared)
    )


class DecoderLayer(nn.Module):
    """Each of the two blocks gets its input normalised, and what it gives, normalised too in some families, is added to
    that input."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        has_pre_norms, has_post_norms = config.layout.has_pre_norms, config.layout.has_post_norms
        self.attention_norm = build_norm(config) if has_pre_norms else nn.Identity()
        self.attention = CausalAttention(config, layer)
        self.attention_post_norm = build_norm(config) if has_post_norms else nn.Identity()
        self.feed_forward_norm = build_norm(config) if has_pre_norms else nn.Identity()
        self.feed_forward = build_feed_forward(config, layer)
        self.feed_forward_post_norm = build_norm(config) if has_post_norms else nn.Identity()

    def forward(self, hidden_states: Tensor, step: Step | Reading) -> Tensor:
        attended = self.attention(self.attention_norm(hidden_states), step)
        hidden_states = hidden_states + self.attention_post_norm(attended)
        fed = self.feed_forward(self.feed_forward_norm(hidden_states))
        return hidden_states + self.feed_forward_post_norm(fed)


class ParallelLayer(nn.Module):
    """Both blocks read the layer's input, normalised for both or for each, and both are added to it (Wang and
    Komatsuzaki, 2021: GPT-J)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = CausalAttention(config, layer)
        self.feed_forward_norm = build_norm(config) if config.layout.num_parallel_norms > 1 else None
        self.feed_forward = DecoderFeedForward(config)

    def forward(self, hidden_states: Tensor, step: Step | Reading) -> Tensor:
        normed = self.attention_norm(hidden_states)
        attended = hidden_states + self.attention(normed, step)
        if self.feed_forward_norm is not None:
            normed = self.feed_forward_norm(hidden_states)
        return attended + self.feed_forward(normed)


def build_norm(config: DecoderConfig) -> nn.Module:
    if config.layout.has_rms_norm:
        return nn.RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.layout.has_norm_bias)


class Decoder(nn.Module):
    """A causal language model over packed sequences: token ids to logits, the module that engines are built from.

    `kv_cache` is made by `kv_layout`, and changed; the other arguments are those of `Batch` and `Paging`.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        build_layer = ParallelLayer if config.layout.num_parallel_norms else DecoderLayer
        self.layers = nn.ModuleList(build_layer(config, layer) for layer in range(config.num_layers))
        self.norm = build_norm(config)
        self.lm_head = None if config.is_tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Layers of the same settings share one.
        distinct = [each for each in dict.fromkeys(config.rotaries) if each is not None]
        names = {each: f"rotary_{index}" for index, each in enumerate(distinct)}
        for each, name in names.items():
            table = build_table(each, config.max_position_embeddings, config.longest_text)
            self.register_buffer(name, table, persistent=False)
        self.table_names = [None if each is None else names[each] for each in config.rotaries]

    def find_tables(self) -> Tables:
        return tuple(None if name is None else self.get_buffer(name) for name in self.table_names)

    def kv_layout(self, dtype: torch.dtype) -> KVLayout:
        return KVLayout(self.config.num_layers, self.config.num_kv_heads, self.config.head_dim, dtype)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[num_tokens, hidden_size]; families whose positions are rows add those here."""
        rows: Tensor = self.embedding(input_ids)
        return rows if self.config.embedding_scale == 1 else rows * self.config.embedding_scale

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
        tables = self.find_tables()
        step = Step(position_ids, cu_seqlens, max_seqlen, slot_mapping, block_table, cache_seqlens, tables, kv_cache)
        hidden_states = self.embed(input_ids, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, step)
        chosen = self.norm(hidden_states.index_select(0, logit_rows))
        head = self.embedding if self.lm_head is None else self.lm_head
        logits = functional.linear(chosen, head.weight).float()
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        if self.config.logit_softcap:
            logits = torch.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        return {"logits": logits}
