"""RoBERTa (Liu et al., 2019); with other vocabularies XLM-R (Conneau et al., 2019), CamemBERT (Martin et al., 2019).

BERT but for its positions, which count from behind the padding id, and its classification head.
"""

from torch import Tensor, nn

from models.bert import EMBEDDING_RENAMES, LAYER_RENAMES, POOLER, POSITION_IDS, UNUSED_POSITIONS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, Encoder, Sequences, offset_positions


class Roberta(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.embeddings = Embeddings(config)
        self.stack = Encoder(config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        positions = offset_positions(input_ids, position_ids, self.pad_token_id)
        hidden_states = self.embeddings(input_ids, positions, token_type_ids)
        return self.stack(hidden_states, sequences)


TWO_LAYER_HEAD_RENAMES: Renames = (
    (r"classifier\.dense\.(weight|bias)", r"dense.\1"),
    (r"classifier\.out_proj\.(weight|bias)", r"output.\1"),
)
WORD_HEAD_RENAMES: Renames = (
    (r"lm_head\.dense\.(weight|bias)", r"dense.\1"),
    (r"lm_head\.layer_norm\.(weight|bias)", r"norm.\1"),
    (r"lm_head\.bias", r"bias"),
)
TIED_HEAD = "lm_head.decoder.weight"
LM_HEAD = r"lm_head\.(bias|(dense|layer_norm|decoder)\.(weight|bias))"

FAMILY = Family(
    encoder=Roberta,
    model_types=("roberta", "xlm-roberta", "camembert"),
    prefix="roberta.",
    renames=EMBEDDING_RENAMES + LAYER_RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=(POSITION_IDS, POOLER, LM_HEAD),
    spare=(UNUSED_POSITIONS,),
    tied_head=TIED_HEAD,
)
