"""XLM-RoBERTa XL and XXL (Goyal et al., 2021): RoBERTa whose layers normalise what they read and not what they give."""

from torch import Tensor, nn

from models.bert import BARE_LAYER_RENAMES, EMBEDDING_RENAMES, POOLER, POSITION_IDS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, FeedForward, SelfAttention, Sequences, offset_positions
from models.roberta import LM_HEAD, TIED_HEAD, TWO_LAYER_HEAD_RENAMES, WORD_HEAD_RENAMES


class RobertaXL(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.embeddings = Embeddings(config, nn.Identity())
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        positions = offset_positions(input_ids, position_ids, self.pad_token_id)
        hidden_states = self.embeddings(input_ids, positions, token_type_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, sequences)
        rows: Tensor = self.norm(hidden_states)
        return rows


class Layer(nn.Module):
    """Pre-LN: each of the two blocks gets its input normalised, and what it gives is added to that input."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, hidden_states: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), sequences, None)
        rows: Tensor = hidden_states + self.feed_forward(self.feed_forward_norm(hidden_states))
        return rows


RENAMES: Renames = (
    *BARE_LAYER_RENAMES,
    (r"encoder\.layer\.(\d+)\.attention\.self_attn_layer_norm\.(\w+)", r"layers.\1.attention_norm.\2"),
    (r"encoder\.layer\.(\d+)\.LayerNorm\.(\w+)", r"layers.\1.feed_forward_norm.\2"),
    (r"encoder\.LayerNorm\.(\w+)", r"norm.\1"),
)

FAMILY = Family(
    encoder=RobertaXL,
    model_types=("xlm-roberta-xl",),
    prefix="roberta.",
    renames=EMBEDDING_RENAMES + RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=(POSITION_IDS, POOLER, LM_HEAD),
    tied_head=TIED_HEAD,
)
