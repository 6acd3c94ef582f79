"""Jina embeddings v3 (Sturua et al., 2024): XLM-R with rotary positions, and a low-rank adapter for each of its tasks.

Every layer and every table has them. A text that names no task is computed without. The code it was published with
calls itself XLM-R (`XLMRobertaLoRA`, `model_type` xlm-roberta with rotary positions), `xlm-roberta-flash` here.
"""

from torch import Tensor, nn

from models.adapters import AdaptedEmbedding, AdaptedLinear, MergedEmbedding
from models.bert import POOLER, POSITION_IDS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.jina_v3_weights import place_adapters
from models.layers import ACTIVATIONS, Sequences
from models.nomic_bert import FREQUENCIES
from models.roberta import LM_HEAD, TIED_HEAD, TWO_LAYER_HEAD_RENAMES, WORD_HEAD_RENAMES
from models.rotary_layers import RotaryStack, build_layer_norm
from runtime.ops import rotate, varlen_attention


class JinaV3(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.stack = RotaryStack(config, [Layer(config) for _ in range(config.num_layers)])

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, token_type_ids, sequences.adapter_ids)
        rows: Tensor = self.stack(hidden_states, position_ids, sequences)
        return rows


class Embeddings(nn.Module):
    """Rows of words and of token types, if there are any, normalised: [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width, adapters, num_types = config.hidden_size, config.adapters, config.type_vocab_size
        self.word = AdaptedEmbedding(config.vocab_size, width, adapters)
        self.token_type = MergedEmbedding(num_types, width, adapters) if num_types else None
        self.norm = build_layer_norm(config)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, adapter_ids: Tensor) -> Tensor:
        rows = self.word(input_ids, adapter_ids)
        if self.token_type is not None:
            rows = rows + self.token_type(token_type_ids, adapter_ids)
        normed: Tensor = self.norm(rows)
        return normed


class Layer(nn.Module):
    """Post-LN, as BERT's."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = build_layer_norm(config)
        self.up = AdaptedLinear(config.hidden_size, config.intermediate_size, config.adapters)
        self.activation = ACTIVATIONS[config.activation]
        self.down = AdaptedLinear(config.intermediate_size, config.hidden_size, config.adapters)
        self.feed_forward_norm = build_layer_norm(config)

    def forward(self, hidden_states: Tensor, position_ids: Tensor, sequences: Sequences, table: Tensor) -> Tensor:
        ids = sequences.adapter_ids
        attended = self.attention(hidden_states, position_ids, sequences, table)
        hidden_states = self.attention_norm(attended + hidden_states)
        fed = self.down(self.activation(self.up(hidden_states, ids)), ids)
        rows: Tensor = self.feed_forward_norm(fed + hidden_states)
        return rows


class Attention(nn.Module):
    """Each sequence attends to itself. `table`: see `padless::rotate`."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.hidden_size
        self.shape = (-1, config.num_heads, config.head_dim)
        self.softmax_scale = config.head_dim**-0.5
        self.q, self.k, self.v, self.o = (AdaptedLinear(width, width, config.adapters) for _ in range(4))

    def forward(self, hidden_states: Tensor, position_ids: Tensor, sequences: Sequences, table: Tensor) -> Tensor:
        ids = sequences.adapter_ids
        q, k, v = (linear(hidden_states, ids).view(self.shape) for linear in (self.q, self.k, self.v))
        q, k = (rotate.OP(x, position_ids, table) for x in (q, k))
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        attended = varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, self.softmax_scale), num_keys=sequences.num_keys
        )
        rows: Tensor = self.o(attended.flatten(1), ids)
        return rows


WEIGHT = r"(?:parametrizations\.weight\.)?(?:weight|original)"
ADAPTER = r"parametrizations\.weight\.0\.(?P<part>lora_[AB])"
PARTS = (
    (r"embeddings\.(word|token_type)_embeddings", r"embeddings.\1"),
    (r"(?:encoder\.)?layers\.(\d+)\.mixer\.out_proj", r"stack.layers.\1.attention.o"),
    (r"(?:encoder\.)?layers\.(\d+)\.self_attn\.(q|k|v|o)_proj", r"stack.layers.\1.attention.\2"),
    (r"(?:encoder\.)?layers\.(\d+)\.mlp\.fc1", r"stack.layers.\1.up"),
    (r"(?:encoder\.)?layers\.(\d+)\.mlp\.fc2", r"stack.layers.\1.down"),
)
"""What adapters change, under the names of its own code and of transformers."""
QKV = r"(?:encoder\.)?layers\.(\d+)\.mixer\.Wqkv\."
RENAMES: Renames = (
    *((rf"{pattern}\.{WEIGHT}", rf"{target}.weight") for pattern, target in PARTS),
    *((rf"{pattern}\.bias", rf"{target}.bias") for pattern, target in PARTS),
    *((rf"{pattern}\.{ADAPTER}", rf"{target}.\g<part>") for pattern, target in PARTS),
    (QKV + WEIGHT, r"stack.layers.\1.attention.q+k+v.weight"),
    (QKV + "bias", r"stack.layers.\1.attention.q+k+v.bias"),
    (QKV + ADAPTER, r"stack.layers.\1.attention.qkv.\g<part>"),
    (r"(?:emb_ln|embeddings\.LayerNorm)\.(\w+)", r"embeddings.norm.\1"),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:norm1|post_attention_layernorm)\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (r"(?:encoder\.)?layers\.(\d+)\.(?:norm2|post_mlp_layernorm)\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)

FAMILY = Family(
    encoder=JinaV3,
    model_types=("jina_embeddings_v3", "xlm-roberta-flash"),
    prefix="roberta.",
    renames=RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=(POSITION_IDS, FREQUENCIES, POOLER, r"pooler\.dense\.parametrizations\..*", LM_HEAD),
    tied_head=TIED_HEAD,
    adjust=place_adapters,
)
