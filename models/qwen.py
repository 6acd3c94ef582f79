"""Qwen2 (Yang et al., 2024): Llama with biases for queries, keys and values.

Qwen3 (Yang et al., 2025): Llama with an RMSNorm over each head of queries and keys, before they turn.
"""

from models.decoder_layers import Decoder
from models.family import DecoderFamily
from models.llama import ATTENTION_RENAMES, FREQUENCIES, NORM_RENAMES, QK_NORM_RENAMES

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("qwen2", "qwen3"),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES + QK_NORM_RENAMES,
    ignored=(FREQUENCIES,),
)
