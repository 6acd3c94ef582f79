"""EuroBERT (Boizard et al., 2025): the layers of Llama, but every token sees all of its text."""

from torch import Tensor, nn

from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Sequences
from models.rotary_layers import PreNormLayer, RotaryStack, WordEmbeddings


class EuroBert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = WordEmbeddings(config, nn.Identity())
        norms = [(build_norm(config), build_norm(config)) for _ in range(config.num_layers)]
        self.stack = RotaryStack(config, [PreNormLayer(config, layer, pair) for layer, pair in enumerate(norms)])
        self.norm = build_norm(config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, token_type_ids)
        rows: Tensor = self.norm(self.stack(hidden_states, position_ids, sequences))
        return rows


def build_norm(config: EncoderConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.hidden_size, config.norm_eps)


LAYER = r"layers\.(\d+)\."
RENAMES: Renames = (
    (r"embed_tokens\.weight", r"embeddings.word.weight"),
    (LAYER + r"self_attn\.(q|k|v|o)_proj\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (LAYER + r"input_layernorm\.weight", r"stack.layers.\1.attention_norm.weight"),
    (LAYER + r"mlp\.(gate|up|down)_proj\.(\w+)", r"stack.layers.\1.feed_forward.\2.\3"),
    (LAYER + r"post_attention_layernorm\.weight", r"stack.layers.\1.feed_forward_norm.weight"),
    (r"norm\.weight", r"norm.weight"),
)

FAMILY = Family(
    encoder=EuroBert,
    model_types=("eurobert",),
    prefix="model.",
    renames=RENAMES,
    head_renames=((r"dense\.(weight|bias)", r"dense.\1"), (r"classifier\.(weight|bias)", r"output.\1")),
    head_activation="gelu",
    word_head_renames=((r"lm_head\.bias", "bias"),),
    ignored=(r"lm_head\.(weight|bias)",),
    tied_head="lm_head.weight",
)
