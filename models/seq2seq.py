"""Encoder-decoders as two programs: one encodes sources into a paged cache, one decodes targets from it.

They share the table of words where the model does, and nothing else. `hidden_states` is [num_tokens, hidden_size]
everywhere.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distances import DistanceBias
from models.layers import Sequences
from models.positions import PositionTable, fairseq_sinusoids, marian_sinusoids
from models.seq2seq_config import Seq2SeqConfig, StackConfig
from models.seq2seq_layers import SourceKeys, SourceLayer, TargetLayer, TargetStep, build_last_norm
from runtime.batch import CROSS_WEIGHTS
from runtime.kv_cache.layout import KVLayout


class WordEmbeddings(nn.Module):
    """Rows of words, scaled, with those of positions where a family adds some: [num_tokens, hidden_size].

    `position`: in place of the usual rows.
    """

    def __init__(self, config: Seq2SeqConfig, stack: StackConfig, position: nn.Module | None = None):
        super().__init__()
        self.scale = config.embedding_scale
        self.word = nn.Embedding(stack.vocab_size, config.hidden_size)
        self.position = position or build_positions(config, stack)
        has_norm = config.layout.has_embedding_norm
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps) if has_norm else nn.Identity()

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        rows = self.word(input_ids)
        if self.scale != 1:
            rows = rows * self.scale
        if self.position is not None:
            rows = rows + self.position(position_ids)
        normed: Tensor = self.norm(rows)
        return normed


def build_positions(config: Seq2SeqConfig, stack: StackConfig) -> nn.Module | None:
    """Rows of positions from 0 on."""
    positions, width = config.layout.positions, config.hidden_size
    if positions == "learned":
        return nn.Embedding(stack.max_positions, width)
    if positions == "sinusoidal":
        return PositionTable(marian_sinusoids(stack.max_positions, width))
    if positions == "counted":
        first = config.pad_token_id + 1
        return PositionTable(fairseq_sinusoids(first + stack.max_positions, width)[first:])
    return None


class SourceStack(nn.Module):
    """The layers of the encoder, and their biases by distance if they have any."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.biases = build_biases(config, config.encoder, is_causal=False)
        self.layers = nn.ModuleList(SourceLayer(config) for _ in range(config.encoder.num_layers))
        self.norm = build_last_norm(config)

    def forward(self, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        for layer, bias in zip(self.layers, spread_biases(self.biases, len(self.layers)), strict=True):
            hidden_states = layer(hidden_states, sequences, bias)
        normed: Tensor = self.norm(hidden_states)
        return normed


class SourceEncoder(nn.Module):
    """Sources into the cache of a decoder, which `kv_layout` has made: the module that engines are built from.

    The keys and values of every layer of the decoder are computed once, of what the encoder gives.
    """

    def __init__(self, config: Seq2SeqConfig, embeddings: nn.Module):
        super().__init__()
        self.config = config
        self.embeddings = embeddings
        self.stack = SourceStack(config)
        self.keys = nn.ModuleList(SourceKeys(config, layer) for layer in range(config.decoder.num_layers))

    def kv_layout(self, dtype: torch.dtype) -> KVLayout:
        return layout_cache(self.config, dtype)

    def encode(
        self, embedded: Tensor, cu_seqlens: Tensor, max_seqlen: int, slot_mapping: Tensor, kv_cache: Tensor
    ) -> dict[str, Tensor]:
        """`stored`: nothing, [0]; the cache is changed."""
        hidden_states = self.stack(embedded, Sequences(cu_seqlens, max_seqlen))
        stored = [keys(hidden_states, slot_mapping, kv_cache) for keys in self.keys]
        return {"stored": stored[-1]}


class TextEncoder(SourceEncoder):
    """Of token ids."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        slot_mapping: Tensor,
        kv_cache: Tensor,
    ) -> dict[str, Tensor]:
        embedded = self.embeddings(input_ids, position_ids)
        return self.encode(embedded, cu_seqlens, max_seqlen, slot_mapping, kv_cache)


class TargetStack(nn.Module):
    """The same of the decoder."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.biases = build_biases(config, config.decoder, is_causal=True)
        self.layers = nn.ModuleList(TargetLayer(config, layer) for layer in range(config.decoder.num_layers))
        self.norm = build_last_norm(config)

    def forward(self, hidden_states: Tensor, step: TargetStep, logit_rows: Tensor) -> Tensor:
        """Of the tokens `logit_rows` alone: [num_logits, hidden_size]."""
        for layer, bias in zip(self.layers, spread_biases(self.biases, len(self.layers)), strict=True):
            hidden_states = layer(hidden_states, step, bias)
        normed: Tensor = self.norm(hidden_states.index_select(0, logit_rows))
        return normed


class TargetDecoder(nn.Module):
    """A language model of targets, each of which also attends to its source: the module that engines are built from.

    `has_head`: an output head of its own, else the table of words is that too. `has_logit_bias`: a number is added to
    the logit of each word.
    """

    def __init__(self, config: Seq2SeqConfig, *, has_head: bool, has_logit_bias: bool):
        super().__init__()
        self.config = config
        self.embeddings = WordEmbeddings(config, config.decoder)
        self.stack = TargetStack(config)
        vocab_size = config.decoder.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False) if has_head else None
        self.logit_bias = nn.Parameter(torch.zeros(vocab_size)) if has_logit_bias else None

    def kv_layout(self, dtype: torch.dtype) -> KVLayout:
        return layout_cache(self.config, dtype)

    def compute_logits(self, input_ids: Tensor, position_ids: Tensor, step: TargetStep, logit_rows: Tensor) -> Tensor:
        """fp32 [num_logits, vocab_size], of the tokens `logit_rows`."""
        chosen = self.stack(self.embeddings(input_ids, position_ids), step, logit_rows)
        if self.config.logit_scale != 1:
            chosen = chosen * self.config.logit_scale
        head = self.embeddings.word if self.lm_head is None else self.lm_head
        return functional.linear(chosen, head.weight, self.logit_bias).float()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        slot_mapping: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        source_table: Tensor,
        source_seqlens: Tensor,
        logit_rows: Tensor,
        kv_cache: Tensor,
        weight_rows: Tensor,
    ) -> dict[str, Tensor]:
        """`logits`: fp32 [num_logits, vocab_size], of the tokens `logit_rows`. Where there are
        `config.alignment_heads`, also `cross_weights`, what they look at: fp32 [num_weight_rows, num_alignment_heads,
        num_keys], of the tokens `weight_rows`, the heads in the order of layers. Others do not read `weight_rows`."""
        step = TargetStep(
            *(cu_seqlens, max_seqlen, slot_mapping, block_table, cache_seqlens),
            *(source_table, source_seqlens, kv_cache, weight_rows, []),
        )
        outputs = {"logits": self.compute_logits(input_ids, position_ids, step, logit_rows)}
        return outputs | {CROSS_WEIGHTS: torch.cat(step.told, 1)} if step.told else outputs


def layout_cache(config: Seq2SeqConfig, dtype: torch.dtype) -> KVLayout:
    """Sources and targets lie in the same blocks, in the heads of the decoder."""
    return KVLayout(config.decoder.num_layers, config.decoder.num_heads, config.decoder.head_dim, dtype)


def build_biases(config: Seq2SeqConfig, stack: StackConfig, *, is_causal: bool) -> nn.ModuleList:
    """One for all layers of a stack, or one for each; none where scores are not biased."""
    if config.buckets is None:
        return nn.ModuleList()
    count = stack.num_layers if config.layout.has_layer_biases else 1
    return nn.ModuleList(
        DistanceBias(config.buckets, stack.num_heads, stack.max_positions, is_causal=is_causal) for _ in range(count)
    )


def spread_biases(biases: nn.ModuleList, num_layers: int) -> list[Tensor | None]:
    """What is added to the scores of each layer."""
    tables: list[Tensor | None] = [bias() for bias in biases] or [None]
    return tables if len(tables) == num_layers else tables * num_layers
