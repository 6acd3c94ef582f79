"""BERT (Devlin et al., 2018): learned absolute positions, token types, post-LN layers."""

from torch import Tensor, nn

from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, Encoder, Sequences


class Bert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.stack = Encoder(config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, position_ids, token_type_ids)
        return self.stack(hidden_states, sequences)


EMBEDDING_RENAMES: Renames = (
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"embeddings.\1.weight"),
    (r"embeddings\.LayerNorm\.(\w+)", r"embeddings.norm.\1"),
)
LAYER_RENAMES: Renames = (
    (
        r"encoder\.layer\.(\d+)\.attention\.self\.distance_embedding\.weight",
        r"stack.layers.\1.attention.distance.rows.weight",
    ),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(q|k|v)[a-z]+\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"stack.layers.\1.attention.o.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"stack.layers.\1.feed_forward.up.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)
BARE_LAYER_RENAMES: Renames = tuple((pattern, target.replace("stack.", "")) for pattern, target in LAYER_RENAMES)
"""The same for encoders that hold their layers themselves."""
POOLER_HEAD_RENAMES: Renames = (
    (r"pooler\.dense\.(weight|bias)", r"dense.\1"),
    (r"classifier\.(weight|bias)", r"output.\1"),
)

WORD_HEAD_RENAMES: Renames = (
    (r"cls\.predictions\.transform\.dense\.(weight|bias)", r"dense.\1"),
    (r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)", r"norm.\1"),
    (r"cls\.predictions\.bias", r"bias"),
)
UNUSED_POSITIONS = r"embeddings\.position\.weight"
"""Where distances take their place: transformers saved them all the same."""
POOLER = r"pooler\.dense\.(weight|bias)"
POSITION_IDS = r"embeddings\.position_ids"
"""A buffer that transformers saved before 4.31: the numbers from 0 on."""

FAMILY = Family(
    encoder=Bert,
    model_types=("bert",),
    prefix="bert.",
    renames=EMBEDDING_RENAMES + LAYER_RENAMES,
    head_renames=POOLER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    ignored=(POSITION_IDS, POOLER, r"cls\.(predictions|seq_relationship)\..*"),
    spare=(UNUSED_POSITIONS,),
    tied_head="cls.predictions.decoder.weight",
)
