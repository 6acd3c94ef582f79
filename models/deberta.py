"""DeBERTa v1, v2 and v3 (He et al., 2020, 2021): scores of tokens by tokens, and of tokens by distances.

In v1's files queries, keys and values are one weight, head by head, and keys have no bias.
`hidden_states` is [num_tokens, hidden_size] everywhere.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.bert import EMBEDDING_RENAMES, LAYER_RENAMES, POOLER, POOLER_HEAD_RENAMES, POSITION_IDS, WORD_HEAD_RENAMES
from models.config import EncoderConfig
from models.deberta_config import DebertaConfig
from models.family import Family, Renames
from models.layers import ACTIVATIONS, FeedForward, Sequences
from runtime.lazy_module import LazyWeight
from runtime.ops import unfold, varlen_attention


class DebertaV2(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.stack = Stack(config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, position_ids, token_type_ids)
        rows: Tensor = self.stack(hidden_states, sequences)
        return rows


class Embeddings(nn.Module):
    """Rows of words, with positions and token types where the model has them, as wide as `hidden_size`, normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.embedding_size
        self.word = nn.Embedding(config.vocab_size, width)
        has_positions, has_types = require_deberta(config).has_positions, config.type_vocab_size > 0
        self.position = nn.Embedding(config.max_position_embeddings, width) if has_positions else None
        self.token_type = nn.Embedding(config.type_vocab_size, width) if has_types else None
        is_narrow = width != config.hidden_size
        self.project = nn.Linear(width, config.hidden_size, bias=False) if is_narrow else None
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        rows = self.word(input_ids)
        if self.position is not None:
            rows = rows + self.position(position_ids)
        if self.token_type is not None:
            rows = rows + self.token_type(token_type_ids)
        return self.norm(rows if self.project is None else self.project(rows))


class Stack(nn.Module):
    """Layers that share a table of distances [2 * span, hidden_size], and a convolution beside the first of them."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        deberta = require_deberta(config)
        has_norm = deberta.has_distance_norm
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.distance = nn.Embedding(2 * deberta.span, config.hidden_size) if deberta.has_distances else None
        self.distance_norm = nn.LayerNorm(config.hidden_size, config.norm_eps) if has_norm else nn.Identity()
        self.conv = Convolution(config) if deberta.kernel_size else None
        # On the CPU whatever the default device is: models are built on `meta`, and no checkpoint fills this.
        distances = torch.arange(1 - config.max_position_embeddings, config.max_position_embeddings, device="cpu")
        self.register_buffer("buckets", bucket_distances(distances, deberta), persistent=False)

    def forward(self, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        embedded = hidden_states
        table = None if self.distance is None else self.distance_norm(self.distance.weight)
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, sequences, table, self.get_buffer("buckets"))
            if index == 0 and self.conv is not None:
                hidden_states = self.conv(embedded, hidden_states, sequences)
        return hidden_states


class Layer(nn.Module):
    """Post-LN, as BERT's."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = DisentangledAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, hidden_states: Tensor, sequences: Sequences, table: Tensor | None, buckets: Tensor) -> Tensor:
        attended = self.attention(hidden_states, sequences, table, buckets)
        hidden_states = self.attention_norm(attended + hidden_states)
        rows: Tensor = self.feed_forward_norm(self.feed_forward(hidden_states) + hidden_states)
        return rows


class DisentangledAttention(nn.Module):
    """Keys and queries of distances depend on weights alone: engines compute them once."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        deberta, width = require_deberta(config), config.hidden_size
        self.terms = deberta.terms
        self.shape = (-1, config.num_heads, config.head_dim)
        self.softmax_scale = (config.head_dim * (1 + len(self.terms))) ** -0.5
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        has_own = deberta.has_distances and not deberta.shares_projections
        self.position_k = nn.Linear(width, width) if has_own and "c2p" in self.terms else None
        self.position_q = nn.Linear(width, width) if has_own and "p2c" in self.terms else None

    def forward(self, hidden_states: Tensor, sequences: Sequences, table: Tensor | None, buckets: Tensor) -> Tensor:
        """`table`: rows of distances; None for no terms of them. `buckets`: see `padless::varlen_attention`."""
        q, k, v = (linear(hidden_states).view(self.shape) for linear in (self.q, self.k, self.v))
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        attended = varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, self.softmax_scale),
            num_keys=sequences.num_keys,
            **({} if table is None or not self.terms else self.project_distances(table) | {"buckets": buckets}),
        )
        return self.o(attended.flatten(1))

    def project_distances(self, table: Tensor) -> dict[str, Tensor]:
        """[2 * span, num_heads, head_dim], by the op's names of them."""
        projections = {
            "position_k": ("c2p", self.position_k or self.k),
            "position_q": ("p2c", self.position_q or self.q),
        }
        return {
            name: linear(table).view(self.shape) for name, (term, linear) in projections.items() if term in self.terms
        }


class Convolution(nn.Module):
    """Over the neighbours of each token within its own sequence; added to the first layer's rows, and normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        deberta = require_deberta(config)
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, deberta.kernel_size)
        self.activation = ACTIVATIONS[deberta.kernel_activation]
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, embedded: Tensor, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        neighbours = unfold.OP(embedded, sequences.cu_seqlens, self.conv.kernel_size[0])
        # A copy, which engines make once: passes take a linear layer's weight for a constant of its own.
        weight = self.conv.weight.permute(0, 2, 1).flatten(1).clone()
        rows: Tensor = self.norm(self.activation(functional.linear(neighbours, weight, self.conv.bias)) + hidden_states)
        return rows


def bucket_distances(distances: Tensor, deberta: DebertaConfig) -> Tensor:
    """Rows of the table, int32, by key position less query position.

    A distance has the row of query position less key position. Near ones have each their own; farther ones share rows,
    as many as grow with the logarithm. In fp32 and in the order of transformers, so that the same are rounded up.
    """
    rows = -distances
    middle = deberta.num_buckets // 2
    if middle:
        far = rows.abs().clamp(min=middle)
        most = torch.tensor((deberta.max_distance - 1) / middle, device=rows.device)
        growth = torch.log(far / middle) / torch.log(most)
        rows = torch.where(
            rows.abs() <= middle, rows, rows.sign() * (torch.ceil(growth * (middle - 1)) + middle)
        ).long()
    return (rows + deberta.span).clamp(0, 2 * deberta.span - 1).int()


def require_deberta(config: EncoderConfig) -> DebertaConfig:
    assert config.deberta is not None, f"{config.model_type} has no settings of DeBERTa. This is a bug."
    return config.deberta


SELF = r"encoder\.layer\.(\d+)\.attention\.self\."
RENAMES: Renames = (
    (r"embeddings\.embed_proj\.weight", r"embeddings.project.weight"),
    (SELF + r"(q|k|v)[a-z]+_proj\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (SELF + r"pos_(q|k)[a-z]+_proj\.(\w+)", r"stack.layers.\1.attention.position_\2.\3"),
    (r"encoder\.rel_embeddings\.weight", r"stack.distance.weight"),
    (r"encoder\.LayerNorm\.(\w+)", r"stack.distance_norm.\1"),
    (r"encoder\.conv\.conv\.(\w+)", r"stack.conv.conv.\1"),
    (r"encoder\.conv\.LayerNorm\.(\w+)", r"stack.conv.norm.\1"),
)
NEW_WORD_HEAD_RENAMES: Renames = (
    (r"lm_predictions\.lm_head\.dense\.(weight|bias)", r"dense.\1"),
    (r"lm_predictions\.lm_head\.LayerNorm\.(weight|bias)", r"norm.\1"),
    (r"lm_predictions\.lm_head\.bias", r"bias"),
)
"""Of the head that the published models were trained with; transformers' own, which `legacy` asks for, is BERT's."""

FAMILY = Family(
    encoder=DebertaV2,
    model_types=("deberta-v2",),
    prefix="deberta.",
    renames=EMBEDDING_RENAMES + LAYER_RENAMES + RENAMES,
    head_renames=POOLER_HEAD_RENAMES,
    head_activation="gelu",
    word_head_renames=WORD_HEAD_RENAMES + NEW_WORD_HEAD_RENAMES,
    ignored=(POSITION_IDS, POOLER, r"(cls\.predictions|lm_predictions|mask_predictions)\..*"),
    spare=(r"embeddings\.(position|token_type)\.weight", r"stack\.distance(_norm)?\..*"),
    tied_head="cls.predictions.decoder.weight",
)


def split_heads(tensors: dict[str, LazyWeight], config: EncoderConfig) -> dict[str, LazyWeight]:
    """Of v1: three weights of one, and zeros for the biases that it has not."""
    split, width = dict(tensors), config.hidden_size
    zeros = LazyWeight(torch.empty(width, device="meta"), partial(torch.zeros, width))
    for name, value in tensors.items():
        owner, _, part = name.removesuffix(".weight").rpartition(".")
        if part == "position_k":
            split[f"{owner}.position_k.bias"] = zeros
        elif part == "in_proj" and value.like.shape == (3 * width, width):
            del split[name]
            split[f"{owner}.k.bias"] = zeros
            for index, each in enumerate("qkv"):
                split[f"{owner}.{each}.weight"] = value.then(partial(take_part, config.num_heads, index))
    return split


def take_part(num_heads: int, index: int, value: Tensor) -> Tensor:
    return value.unflatten(0, (num_heads, 3, -1))[:, index].flatten(0, 1)


FIRST_RENAMES: Renames = (
    (SELF + r"in_proj\.weight", r"stack.layers.\1.attention.in_proj.weight"),
    (SELF + r"(q|v)_bias", r"stack.layers.\1.attention.\2.bias"),
    (SELF + r"pos_proj\.weight", r"stack.layers.\1.attention.position_k.weight"),
    (SELF + r"pos_q_proj\.(\w+)", r"stack.layers.\1.attention.position_q.\2"),
)
FIRST_FAMILY = replace(FAMILY, model_types=("deberta",), renames=FAMILY.renames + FIRST_RENAMES, adjust=split_heads)
