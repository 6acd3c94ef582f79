"""OLMo 2 (OLMo Team, 2024): Llama that normalises what its blocks give instead of what they read, and all heads of
queries, and all of keys, as one row.

OLMo 3 (OLMo Team, 2025) has windows in three layers of four.
"""

from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from models.llama import ATTENTION_RENAMES, LAYER, QK_NORM_RENAMES

RENAMES: Renames = (
    (LAYER + r"post_attention_layernorm\.weight", r"layers.\1.attention_post_norm.weight"),
    (LAYER + r"post_feedforward_layernorm\.weight", r"layers.\1.feed_forward_post_norm.weight"),
)

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("olmo2", "olmo3"),
    prefix="model.",
    renames=ATTENTION_RENAMES + QK_NORM_RENAMES + RENAMES,
)
