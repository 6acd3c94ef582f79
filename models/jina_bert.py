"""JinaBERT v2 (Günther et al., 2023): BERT whose scores fall with the distance, with gated feed-forward blocks.

The falls are ALiBi's (Press et al., 2022), the same to both sides. The variant for code and for languages other than
English also normalises queries and keys, and normalises attention's rows twice.
"""

import math

import torch
from torch import Tensor, nn

from models.bert import BARE_LAYER_RENAMES, POOLER, POOLER_HEAD_RENAMES, POSITION_IDS, WORD_HEAD_RENAMES
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, Sequences
from models.rotary_layers import GatedFeedForward
from runtime.ops import varlen_attention


class JinaBert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        # On the CPU whatever the default device is: models are built on `meta`, and no checkpoint fills these.
        reach = config.max_position_embeddings
        distances = torch.arange(1 - reach, reach, device="cpu").abs()
        slopes = torch.tensor(find_slopes(config.num_heads), device="cpu")
        self.register_buffer("bias", -slopes[:, None] * distances, persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states: Tensor = self.embeddings(input_ids, position_ids, token_type_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, sequences, self.get_buffer("bias"))
        return hidden_states


def find_slopes(num_heads: int) -> list[float]:
    """By how much the scores of each head fall with each token in between.

    Of a power of 2 heads they are powers of one number. For others those of the power of 2 below it are followed by
    every other one of that above it.
    """
    power = 1 << int(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes if power == num_heads else slopes + find_slopes(2 * power)[::2][: num_heads - power]


class Layer(nn.Module):
    """Post-LN, as BERT's."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        has_more_norms = config.model_type == "jina_bert_qk_norm"
        self.attention = Attention(config, has_norms=has_more_norms)
        self.attention_norm = build_norm(config)
        self.second_norm = build_norm(config) if has_more_norms else None
        self.feed_forward = GatedFeedForward(config, has_gate_bias=False, has_down_bias=True)
        self.feed_forward_norm = build_norm(config)

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor) -> Tensor:
        attended = self.attention_norm(self.attention(hidden_states, sequences, bias) + hidden_states)
        hidden_states = attended if self.second_norm is None else self.second_norm(attended + hidden_states)
        rows: Tensor = self.feed_forward_norm(self.feed_forward(hidden_states) + hidden_states)
        return rows


class Attention(nn.Module):
    """`bias` is by distance, see `padless::varlen_attention`. `has_norms`: of queries and of keys, over all heads."""

    def __init__(self, config: EncoderConfig, *, has_norms: bool):
        super().__init__()
        width = config.hidden_size
        self.shape = (-1, config.num_heads, config.head_dim)
        self.softmax_scale = config.head_dim**-0.5
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = (build_norm(config) if has_norms else nn.Identity() for _ in range(2))

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor) -> Tensor:
        rows = (self.q_norm(self.q(hidden_states)), self.k_norm(self.k(hidden_states)), self.v(hidden_states))
        q, k, v = (each.view(self.shape) for each in rows)
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        attended = varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, self.softmax_scale), bias=bias, num_keys=sequences.num_keys
        )
        return self.o(attended.flatten(1))


def build_norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.norm_eps)


LAYER = r"encoder\.layer\.(\d+)\."
MLP = LAYER + r"mlp\."
LAYER_RENAMES: Renames = (
    *BARE_LAYER_RENAMES,
    (LAYER + r"attention\.self\.layer_norm_(q|k)\.(\w+)", r"layers.\1.attention.\2_norm.\3"),
    (MLP + r"gated_layers\.weight", r"layers.\1.feed_forward.gate+up.weight"),
    (MLP + r"up_gated_layer\.weight", r"layers.\1.feed_forward.up+gate.weight"),
    (MLP + r"(?:wo|down_layer)\.(\w+)", r"layers.\1.feed_forward.down.\2"),
    (MLP + r"layernorm\.(\w+)", r"layers.\1.feed_forward_norm.\2"),
    (LAYER + r"layer_norm_1\.(\w+)", r"layers.\1.second_norm.\2"),
    (LAYER + r"layer_norm_2\.(\w+)", r"layers.\1.feed_forward_norm.\2"),
)
EMBEDDING_RENAMES: Renames = (
    (r"embeddings\.(word|token_type)_embeddings\.weight", r"embeddings.\1.weight"),
    (r"embeddings\.LayerNorm\.(\w+)", r"embeddings.norm.\1"),
)

FAMILY = Family(
    encoder=JinaBert,
    model_types=("jina_bert", "jina_bert_qk_norm"),
    prefix="bert.",
    renames=EMBEDDING_RENAMES + LAYER_RENAMES,
    head_renames=POOLER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    ignored=(POSITION_IDS, POOLER, r"cls\.(predictions|seq_relationship)\..*"),
    tied_head="cls.predictions.decoder.weight",
)
