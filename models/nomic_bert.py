"""NomicBERT (Nussbaum et al., 2024): BERT with rotary positions, gated feed-forward blocks and no biases.

NomicBERT v2 (Nussbaum and Duderstadt, 2025) has biases, no gates, and in every other layer several experts.

Its own code stretches positions to the length of a batch where `rotary_scaling_factor` is set. Here a text's numbers
do not depend on others, and texts end at the length that the model was trained on, up to which nothing is stretched.
"""

from functools import partial

from torch import Tensor, nn

from models.bert import POSITION_IDS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Sequences
from models.rotary_layers import PostNormLayer, RotaryStack, WordEmbeddings, build_layer_norm
from runtime.lazy_module import LazyWeight


class NomicBert(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = WordEmbeddings(config, build_layer_norm(config))
        self.stack = RotaryStack(config, [PostNormLayer(config, layer) for layer in range(config.num_layers)])

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        hidden_states = self.embeddings(input_ids, token_type_ids)
        rows: Tensor = self.stack(hidden_states, position_ids, sequences)
        return rows


LAYER = r"layers\.(\d+)\."
NATIVE_RENAMES: Renames = (
    (r"embeddings\.(word|token_type)_embeddings\.weight", r"embeddings.\1.weight"),
    (r"embeddings\.LayerNorm\.(\w+)", r"embeddings.norm.\1"),
    (LAYER + r"self_attn\.(q|k|v|o)_proj\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (LAYER + r"post_attention_layernorm\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (LAYER + r"mlp\.(gate|up|down)_proj\.(\w+)", r"stack.layers.\1.feed_forward.\2.\3"),
    (LAYER + r"post_mlp_layernorm\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)
"""transformers' own."""
OWN_TRUNK = r"(?:bert\.)?"
OWN_LAYER = OWN_TRUNK + r"encoder\.layers\.(\d+)\."
OWN_RENAMES: Renames = (
    (OWN_TRUNK + r"embeddings\.(word|token_type)_embeddings\.weight", r"embeddings.\1.weight"),
    (OWN_TRUNK + r"emb_ln\.(\w+)", r"embeddings.norm.\1"),
    (OWN_LAYER + r"attn\.Wqkv\.(\w+)", r"stack.layers.\1.attention.q+k+v.\2"),
    (OWN_LAYER + r"attn\.out_proj\.(\w+)", r"stack.layers.\1.attention.o.\2"),
    (OWN_LAYER + r"norm1\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (OWN_LAYER + r"mlp\.fc11\.(\w+)", r"stack.layers.\1.feed_forward.up.\2"),
    (OWN_LAYER + r"mlp\.fc12\.(\w+)", r"stack.layers.\1.feed_forward.gate.\2"),
    (OWN_LAYER + r"mlp\.fc2\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (OWN_LAYER + r"mlp\.fc1\.(\w+)", r"stack.layers.\1.feed_forward.up.\2"),
    (OWN_LAYER + r"mlp\.router\.layer\.weight", r"stack.layers.\1.feed_forward.router.weight"),
    (OWN_LAYER + r"mlp\.experts\.mlp\.w1", r"stack.layers.\1.feed_forward.up"),
    (OWN_LAYER + r"mlp\.experts\.mlp\.w2", r"stack.layers.\1.feed_forward.down"),
    (OWN_LAYER + r"mlp\.experts\.bias", r"stack.layers.\1.feed_forward.bias"),
    (OWN_LAYER + r"norm2\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)
"""Those of the code that came before it, and of the published files."""
FREQUENCIES = r".*rotary_emb\.inv_freq"


def part_experts(tensors: dict[str, LazyWeight], config: EncoderConfig) -> dict[str, LazyWeight]:
    """Those of a layer lie below each other in one matrix, the second layer's turned round."""
    count = config.experts.num_experts if config.experts else 1
    parted = dict(tensors)
    for name, value in tensors.items():
        is_up = name.endswith(".feed_forward.up")
        if (is_up or name.endswith(".feed_forward.down")) and value.like.ndim == 2 and len(value.like) % count == 0:
            parted[name] = value.then(partial(part, count, not is_up))
    return parted


def part(count: int, is_turned: bool, value: Tensor) -> Tensor:
    experts = value.unflatten(0, (count, -1))
    return experts.transpose(1, 2) if is_turned else experts


FAMILY = Family(
    encoder=NomicBert,
    model_types=("nomic_bert",),
    prefix="nomic_bert.",
    renames=NATIVE_RENAMES + OWN_RENAMES,
    head_renames=(
        (OWN_TRUNK + r"pooler\.dense\.(weight|bias)", r"dense.\1"),
        (r"classifier\.(weight|bias)", r"output.\1"),
    ),
    head_activation="tanh",
    word_head_renames=(
        (r"cls\.predictions\.transform\.dense\.(weight|bias)", r"dense.\1"),
        (r"cls\.predictions\.transform\.layer_norm\.(weight|bias)", r"norm.\1"),
        (r"cls\.predictions\.bias", r"bias"),
    ),
    ignored=(POSITION_IDS, FREQUENCIES, OWN_TRUNK + r"pooler\.dense\.(weight|bias)", r"cls\.predictions\..*"),
    tied_head="cls.predictions.decoder.weight",
    adjust=part_experts,
)
