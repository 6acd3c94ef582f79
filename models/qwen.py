"""Qwen2 (Yang et al., 2024): Llama with biases for queries, keys and values.

Qwen3 (Yang et al., 2025): Llama with an RMSNorm over each head of queries and keys, before they turn.
"""

from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from models.llama import ATTENTION_RENAMES, FREQUENCIES, LAYER, NORM_RENAMES

RENAMES: Renames = ((LAYER + r"self_attn\.(q|k)_norm\.weight", r"layers.\1.attention.\2_norm.weight"),)

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("qwen2", "qwen3"),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES + RENAMES,
    ignored=(FREQUENCIES,),
)
