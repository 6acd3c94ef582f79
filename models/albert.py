"""ALBERT (Lan et al., 2019): narrow embedding tables, and layers that share their weights.

Layers come in groups of `layers_per_group`; `num_layers` times a group is run. The weights of a group exist once, here
as in the captured graph, where the same constant is read by every layer that uses it.
"""

from torch import Tensor, nn

from models.bert import EMBEDDING_RENAMES, POSITION_IDS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, EncoderLayer, Sequences


class Albert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.project = nn.Linear(config.embedding_size, config.hidden_size)
        self.groups = nn.ModuleList(
            nn.ModuleList(EncoderLayer(config) for _ in range(config.layers_per_group))
            for _ in range(config.num_groups)
        )
        repeats = config.num_layers / config.num_groups
        # In floating point, as in transformers: it matters where the groups do not divide the layers.
        self.order = [int(index / repeats) for index in range(config.num_layers)]

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.project(self.embeddings(input_ids, position_ids, token_type_ids))
        groups = [list(group.children()) for group in self.groups]
        for index in self.order:
            for layer in groups[index]:
                hidden_states = layer(hidden_states, sequences)
        return hidden_states


LAYER = r"encoder\.albert_layer_groups\.(\d+)\.albert_layers\.(\d+)"
RENAMES: Renames = (
    (r"encoder\.embedding_hidden_mapping_in\.(weight|bias)", r"project.\1"),
    (LAYER + r"\.attention\.(q|k|v)(?:uery|ey|alue)\.(\w+)", r"groups.\1.\2.attention.\3.\4"),
    (LAYER + r"\.attention\.dense\.(\w+)", r"groups.\1.\2.attention.o.\3"),
    (LAYER + r"\.attention\.LayerNorm\.(\w+)", r"groups.\1.\2.attention_norm.\3"),
    (LAYER + r"\.ffn\.(\w+)", r"groups.\1.\2.feed_forward.up.\3"),
    (LAYER + r"\.ffn_output\.(\w+)", r"groups.\1.\2.feed_forward.down.\3"),
    (LAYER + r"\.full_layer_layer_norm\.(\w+)", r"groups.\1.\2.feed_forward_norm.\3"),
)
HEAD_RENAMES: Renames = (
    (r"pooler\.(weight|bias)", r"dense.\1"),
    (r"classifier\.(weight|bias)", r"output.\1"),
)

WORD_HEAD_RENAMES: Renames = (
    (r"predictions\.dense\.(weight|bias)", r"dense.\1"),
    (r"predictions\.LayerNorm\.(weight|bias)", r"norm.\1"),
    (r"predictions\.bias", r"bias"),
)

FAMILY = Family(
    encoder=Albert,
    model_types=("albert",),
    prefix="albert.",
    renames=EMBEDDING_RENAMES + RENAMES,
    head_renames=HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    ignored=(
        POSITION_IDS,
        r"pooler\.(weight|bias)",
        r"predictions\.(bias|(LayerNorm|dense|decoder)\.(weight|bias))",
        r"sop_classifier\.classifier\.(weight|bias)",
    ),
    tied_head="predictions.decoder.weight",
)
