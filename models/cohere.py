"""Command R (Cohere, 2024): Llama with its two blocks beside each other, LayerNorm without bias and scaled logits.

Command R7B and A (`cohere2`) have windows in three layers of four, and the fourth knows no positions.
"""

from models.decoder_layers import Decoder
from models.family import DecoderFamily
from models.fused_weights import part_pairs
from models.llama import ATTENTION_RENAMES, NORM_RENAMES

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("cohere", "cohere2"),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES,
    adjust=part_pairs,
)
