"""MPNet (Song et al., 2020): RoBERTa's positions, and scores biased by distance in buckets shared by all layers."""

from torch import Tensor, nn

from models.bert import EMBEDDING_RENAMES, POOLER, POSITION_IDS
from models.config import EncoderConfig
from models.distances import Buckets, DistanceBias
from models.family import Family, Renames
from models.layers import Embeddings, Encoder, Sequences, offset_positions
from models.roberta import LM_HEAD, TIED_HEAD, TWO_LAYER_HEAD_RENAMES, WORD_HEAD_RENAMES

BUCKETS = Buckets(32, 128)


class MPNet(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.embeddings = Embeddings(config)
        self.stack = Encoder(config)
        self.relative = DistanceBias(
            BUCKETS, config.num_heads, config.max_position_embeddings - config.pad_token_id - 1
        )

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        positions = offset_positions(input_ids, position_ids, self.pad_token_id)
        hidden_states = self.embeddings(input_ids, positions, token_type_ids)
        return self.stack(hidden_states, sequences, self.relative())


RENAMES: Renames = (
    (r"encoder\.relative_attention_bias\.weight", r"relative.rows.weight"),
    (r"encoder\.layer\.(\d+)\.attention\.attn\.(q|k|v|o)\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.LayerNorm\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"stack.layers.\1.feed_forward.up.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)

FAMILY = Family(
    encoder=MPNet,
    model_types=("mpnet",),
    prefix="mpnet.",
    renames=EMBEDDING_RENAMES + RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=(POSITION_IDS, POOLER, LM_HEAD),
    tied_head=TIED_HEAD,
)
