"""ConvBERT (Jiang et al., 2020): half of the heads of attention are convolutions whose kernels follow the text.

`hidden_states` is [num_tokens, hidden_size] everywhere. No convolution reaches into another sequence, nor into padding:
transformers' do, so a text there has the same numbers only where it is alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.bert import BARE_LAYER_RENAMES, EMBEDDING_RENAMES
from models.config import EncoderConfig
from models.convbert_config import ConvBertConfig
from models.electra import IGNORED, PROJECT_RENAMES, WORD_HEAD_RENAMES
from models.family import Family, Renames
from models.layers import ACTIVATIONS, Embeddings, FeedForward, Sequences
from models.roberta import TWO_LAYER_HEAD_RENAMES
from runtime.ops import dynamic_conv, varlen_attention


class ConvBert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        is_narrow = config.embedding_size != config.hidden_size
        self.project = nn.Linear(config.embedding_size, config.hidden_size) if is_narrow else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states: Tensor = self.embeddings(input_ids, position_ids, token_type_ids)
        if self.project is not None:
            hidden_states = self.project(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, sequences)
        return hidden_states


class Layer(nn.Module):
    """Post-LN, as BERT's."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = MixedAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        has_groups = require_convbert(config).num_groups > 1
        self.feed_forward = GroupedFeedForward(config) if has_groups else FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.attention_norm(self.attention(hidden_states, sequences) + hidden_states)
        rows: Tensor = self.feed_forward_norm(self.feed_forward(hidden_states) + hidden_states)
        return rows


class MixedAttention(nn.Module):
    """Heads of attention, and as many of a convolution: its kernels are made of each token's query and what is near."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        convbert, hidden_size = require_convbert(config), config.hidden_size
        width, self.kernel_size = convbert.num_heads * convbert.head_dim, convbert.kernel_size
        self.shape = (-1, convbert.num_heads, convbert.head_dim)
        self.softmax_scale = convbert.head_dim**-0.5
        self.q, self.k, self.v, self.local_v = (nn.Linear(hidden_size, width) for _ in range(4))
        self.local_k = SeparableConvolution(hidden_size, width, self.kernel_size)
        self.kernel = nn.Linear(width, convbert.num_heads * self.kernel_size)
        self.o = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        query = self.q(hidden_states)
        q, k, v = (rows.view(self.shape) for rows in (query, self.k(hidden_states), self.v(hidden_states)))
        attended = varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, self.softmax_scale), num_keys=sequences.num_keys
        )
        kernels = self.kernel(self.local_k(hidden_states, sequences) * query)
        local = dynamic_conv.OP(self.local_v(hidden_states), kernels, borders, self.kernel_size, softmax=True)
        return self.o(torch.cat([attended.flatten(1), local], dim=1))


class SeparableConvolution(nn.Module):
    """Of each column by itself, then a linear layer. Its parameters have transformers' shapes."""

    def __init__(self, in_features: int, out_features: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.depthwise = nn.Parameter(torch.empty(in_features, 1, kernel_size))
        self.pointwise = nn.Parameter(torch.empty(out_features, in_features, 1))
        self.bias = nn.Parameter(torch.empty(out_features, 1))

    def forward(self, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        rows = dynamic_conv.OP(hidden_states, self.depthwise.view(1, -1), sequences.cu_seqlens, self.kernel_size)
        # Copies, which engines make once: passes take a linear layer's weights for constants of their own.
        return functional.linear(rows, self.pointwise.flatten(1).clone(), self.bias.flatten().clone())


class GroupedFeedForward(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        num_groups = require_convbert(config).num_groups
        self.up = GroupedLinear(config.hidden_size, config.intermediate_size, num_groups)
        self.activation = ACTIVATIONS[config.activation]
        self.down = GroupedLinear(config.intermediate_size, config.hidden_size, num_groups)

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows: Tensor = self.down(self.activation(self.up(hidden_states)))
        return rows


class GroupedLinear(nn.Module):
    """Groups of columns that read a group each: a linear layer with zeros elsewhere, which engines make once."""

    def __init__(self, in_features: int, out_features: int, num_groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_groups, in_features // num_groups, out_features // num_groups))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = torch.block_diag(*(self.weight[group].t() for group in range(len(self.weight))))
        return functional.linear(hidden_states, weight, self.bias)


def require_convbert(config: EncoderConfig) -> ConvBertConfig:
    assert config.convbert is not None, f"{config.model_type} has no settings of ConvBERT. This is a bug."
    return config.convbert


SELF = r"encoder\.layer\.(\d+)\.attention\.self\."
RENAMES: Renames = (
    *BARE_LAYER_RENAMES,
    (SELF + r"key_conv_attn_layer\.(depthwise|pointwise)\.weight", r"layers.\1.attention.local_k.\2"),
    (SELF + r"key_conv_attn_layer\.bias", r"layers.\1.attention.local_k.bias"),
    (SELF + r"conv_kernel_layer\.(\w+)", r"layers.\1.attention.kernel.\2"),
    (SELF + r"conv_out_layer\.(\w+)", r"layers.\1.attention.local_v.\2"),
)

FAMILY = Family(
    encoder=ConvBert,
    model_types=("convbert",),
    prefix="convbert.",
    renames=EMBEDDING_RENAMES + PROJECT_RENAMES + RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="gelu",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=IGNORED,
    tied_head="generator_lm_head.weight",
)
