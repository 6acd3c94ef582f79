"""ModernBERT (Warner et al., 2024): rotary positions, gated feed-forward blocks, and a window in most layers."""

from torch import Tensor, nn

from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Sequences
from models.rotary_layers import PreNormLayer, RotaryStack, WordEmbeddings, build_layer_norm


class ModernBert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = WordEmbeddings(config, build_layer_norm(config))
        self.stack = RotaryStack(config, [build_layer(config, layer) for layer in range(config.num_layers)])
        self.norm = build_layer_norm(config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, token_type_ids)
        return self.norm(self.stack(hidden_states, position_ids, sequences))


def build_layer(config: EncoderConfig, layer: int) -> PreNormLayer:
    """The first gets what the embeddings' norm gives, and has none of its own before attention."""
    attention_norm = build_layer_norm(config) if layer else nn.Identity()
    return PreNormLayer(config, layer, (attention_norm, build_layer_norm(config)))


LAYER = r"layers\.(\d+)\."
RENAMES: Renames = (
    (r"embeddings\.tok_embeddings\.weight", r"embeddings.word.weight"),
    (r"embeddings\.norm\.(\w+)", r"embeddings.norm.\1"),
    (LAYER + r"attn\.Wqkv\.(\w+)", r"stack.layers.\1.attention.q+k+v.\2"),
    (LAYER + r"attn\.Wo\.(\w+)", r"stack.layers.\1.attention.o.\2"),
    (LAYER + r"attn_norm\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (LAYER + r"mlp\.Wi\.(\w+)", r"stack.layers.\1.feed_forward.gate+up.\2"),
    (LAYER + r"mlp\.Wo\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (LAYER + r"mlp_norm\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
    (r"final_norm\.(\w+)", r"norm.\1"),
)
TRANSFORM_RENAMES: Renames = ((r"head\.(dense|norm)\.(weight|bias)", r"\1.\2"),)
"""Of the first layer of all heads."""
OUTPUT_RENAME = (r"classifier\.(weight|bias)", r"output.\1")
"""Of the last one of all but those of words, answers' borders included."""

FAMILY = Family(
    encoder=ModernBert,
    model_types=("modernbert",),
    prefix="model.",
    renames=RENAMES,
    head_renames=(*TRANSFORM_RENAMES, OUTPUT_RENAME),
    head_activation="gelu",
    token_head_renames=(*TRANSFORM_RENAMES, OUTPUT_RENAME),
    word_head_renames=(*TRANSFORM_RENAMES, (r"decoder\.bias", "bias")),
    ignored=(r"head\.(dense|norm)\.(weight|bias)", r"decoder\.(weight|bias)"),
    tied_head="decoder.weight",
)
