"""ELECTRA (Clark et al., 2020): BERT with narrower embedding tables, projected where the widths differ.

The discriminator's head says which tokens were replaced; it is of no use for embeddings, and is left out.
"""

from torch import Tensor, nn

from models.bert import EMBEDDING_RENAMES, LAYER_RENAMES, POSITION_IDS, UNUSED_POSITIONS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, Encoder, Sequences
from models.roberta import TWO_LAYER_HEAD_RENAMES


class Electra(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        is_narrow = config.embedding_size != config.hidden_size
        self.project = nn.Linear(config.embedding_size, config.hidden_size) if is_narrow else None
        self.stack = Encoder(config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, position_ids, token_type_ids)
        if self.project is not None:
            hidden_states = self.project(hidden_states)
        return self.stack(hidden_states, sequences)


PROJECT_RENAMES: Renames = ((r"embeddings_project\.(weight|bias)", r"project.\1"),)

WORD_HEAD_RENAMES: Renames = (
    (r"generator_predictions\.dense\.(weight|bias)", r"dense.\1"),
    (r"generator_predictions\.LayerNorm\.(weight|bias)", r"norm.\1"),
    (r"generator_lm_head\.bias", r"bias"),
)

IGNORED = (
    POSITION_IDS,
    r"discriminator_predictions\.(dense|dense_prediction)\.(weight|bias)",
    r"generator_predictions\.(LayerNorm|dense)\.(weight|bias)",
    r"generator_lm_head\.(weight|bias)",
)

FAMILY = Family(
    encoder=Electra,
    model_types=("electra",),
    prefix="electra.",
    renames=EMBEDDING_RENAMES + PROJECT_RENAMES + LAYER_RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="gelu",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=IGNORED,
    spare=(UNUSED_POSITIONS,),
    tied_head="generator_lm_head.weight",
)
