"""The blocks of encoders with rotary positions and gated feed-forward blocks, over packed tensors.

`hidden_states` is [num_tokens, hidden_size] everywhere.
"""

from torch import Tensor, nn

from models.config import EncoderConfig
from models.experts import ExpertsFeedForward
from models.layers import ACTIVATIONS, FeedForward, Sequences
from models.rotary import RotaryConfig, build_table
from models.rotary_layers_config import RotaryLayersConfig
from runtime.ops import rotate, varlen_attention


class RotaryAttention(nn.Module):
    """Each sequence attends to itself, within the layer's window if it has one."""

    def __init__(self, config: EncoderConfig, layer: int):
        super().__init__()
        rotary = require_rotary(config)
        width, kv_width = config.num_heads * rotary.head_dim, rotary.num_kv_heads * rotary.head_dim
        self.head_dim = rotary.head_dim
        self.softmax_scale = rotary.head_dim**-0.5
        self.window = rotary.windows[layer]
        self.q = nn.Linear(config.hidden_size, width, rotary.has_attention_bias)
        self.k = nn.Linear(config.hidden_size, kv_width, rotary.has_attention_bias)
        self.v = nn.Linear(config.hidden_size, kv_width, rotary.has_attention_bias)
        self.o = nn.Linear(width, config.hidden_size, rotary.has_attention_bias)

    def forward(self, hidden_states: Tensor, position_ids: Tensor, sequences: Sequences, table: Tensor) -> Tensor:
        """`table`: see `padless::rotate`."""
        q, k, v = (linear(hidden_states).unflatten(1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        q, k = (rotate.OP(x, position_ids, table) for x in (q, k))
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        attended = varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, self.softmax_scale),
            window=self.window,
            num_keys=sequences.num_keys,
        )
        return self.o(attended.flatten(1))


class GatedFeedForward(nn.Module):
    """down(act(gate) * up) (Shazeer, 2020)."""

    def __init__(self, config: EncoderConfig, *, has_gate_bias: bool, has_down_bias: bool):
        super().__init__()
        width = config.intermediate_size
        self.gate = nn.Linear(config.hidden_size, width, has_gate_bias)
        self.up = nn.Linear(config.hidden_size, width, has_gate_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(width, config.hidden_size, has_down_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(hidden_states)) * self.up(hidden_states))


class PreNormLayer(nn.Module):
    """Each of the two blocks gets its input normalised, and what it gives is added to that input.

    `norms`: of the two inputs.
    """

    def __init__(self, config: EncoderConfig, layer: int, norms: tuple[nn.Module, nn.Module]):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = norms
        self.attention = RotaryAttention(config, layer)
        self.feed_forward = build_feed_forward(config, layer)

    def forward(self, hidden_states: Tensor, position_ids: Tensor, sequences: Sequences, table: Tensor) -> Tensor:
        hidden_states = hidden_states + self.attention(
            self.attention_norm(hidden_states), position_ids, sequences, table
        )
        return hidden_states + self.feed_forward(self.feed_forward_norm(hidden_states))


class PostNormLayer(nn.Module):
    """Each of the two blocks is added to its input, then normalised."""

    def __init__(self, config: EncoderConfig, layer: int):
        super().__init__()
        self.attention = RotaryAttention(config, layer)
        self.attention_norm = build_layer_norm(config)
        self.feed_forward = build_feed_forward(config, layer)
        self.feed_forward_norm = build_layer_norm(config)

    def forward(self, hidden_states: Tensor, position_ids: Tensor, sequences: Sequences, table: Tensor) -> Tensor:
        hidden_states = self.attention_norm(
            hidden_states + self.attention(hidden_states, position_ids, sequences, table)
        )
        rows: Tensor = self.feed_forward_norm(hidden_states + self.feed_forward(hidden_states))
        return rows


class RotaryStack(nn.Module):
    """Layers, and the tables of positions that they turn by: layers of the same settings share one."""

    def __init__(self, config: EncoderConfig, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        settings = require_rotary(config).rotaries
        distinct: list[RotaryConfig] = list(dict.fromkeys(settings))
        self.tables = [f"table_{index}" for index in range(len(distinct))]
        self.table_of_layer = [self.tables[distinct.index(each)] for each in settings]
        for name, each in zip(self.tables, distinct, strict=True):
            self.register_buffer(name, build_table(each, config.max_position_embeddings), persistent=False)

    def forward(self, hidden_states: Tensor, position_ids: Tensor, sequences: Sequences) -> Tensor:
        for layer, table in zip(self.layers, self.table_of_layer, strict=True):
            hidden_states = layer(hidden_states, position_ids, sequences, self.get_buffer(table))
        return hidden_states


class WordEmbeddings(nn.Module):
    """Rows of words, with those of token types where the model has any, through `norm`: [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig, norm: nn.Module):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        has_types = config.type_vocab_size > 0
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size) if has_types else None
        self.norm = norm

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        rows = self.word(input_ids)
        if self.token_type is not None:
            rows = rows + self.token_type(token_type_ids)
        normed: Tensor = self.norm(rows)
        return normed


def build_feed_forward(config: EncoderConfig, layer: int) -> nn.Module:
    rotary, experts = require_rotary(config), config.experts
    if experts is not None and experts.layers[layer]:
        return ExpertsFeedForward(experts, config.hidden_size, config.activation, is_gated=False, has_bias=True)
    if not rotary.is_gated:
        return FeedForward(config)
    return GatedFeedForward(config, has_gate_bias=rotary.has_gate_bias, has_down_bias=rotary.has_down_bias)


def build_layer_norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=require_rotary(config).has_norm_bias)


def require_rotary(config: EncoderConfig) -> RotaryLayersConfig:
    assert config.rotary is not None, f"{config.model_type} was read without its rotary positions. This is a bug."
    return config.rotary
