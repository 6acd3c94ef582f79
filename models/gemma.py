"""Gemma (Mesnard et al., 2024): Llama with larger heads, scaled embeddings and norms that multiply by 1 + weight.

Gemma 2 (Riviere et al., 2024) also normalises what each block gives, caps scores and logits, and every other layer has
a window. Gemma 3 (Kamath et al., 2025) has norms of queries and keys in place of caps, windows in five layers of six,
and rotary positions of their own in these. EmbeddingGemma (Vera et al., 2025) is Gemma 3 that looks both ways.
"""

import torch

from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from models.llama import ATTENTION_RENAMES, FREQUENCIES, LAYER, NORM_RENAMES, QK_NORM_RENAMES
from models.weights import DTYPES
from runtime.lazy_module import LazyWeight


def add_one(tensors: dict[str, LazyWeight], _: DecoderConfig) -> dict[str, LazyWeight]:
    """To the weights of norms, in fp32, so that they multiply by nothing else."""
    return {
        name: value.then(lambda rows: rows.to(torch.float32) + 1)
        if name.endswith("norm.weight") and value.like.dtype in DTYPES
        else value
        for name, value in tensors.items()
    }


POST_NORM_RENAMES: Renames = (
    (LAYER + r"input_layernorm\.weight", r"layers.\1.attention_norm.weight"),
    (LAYER + r"post_attention_layernorm\.weight", r"layers.\1.attention_post_norm.weight"),
    (LAYER + r"pre_feedforward_layernorm\.weight", r"layers.\1.feed_forward_norm.weight"),
    (LAYER + r"post_feedforward_layernorm\.weight", r"layers.\1.feed_forward_post_norm.weight"),
)

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("gemma",),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES,
    ignored=(FREQUENCIES,),
    adjust=add_one,
)
GEMMA2_FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("gemma2",),
    prefix="model.",
    renames=ATTENTION_RENAMES + POST_NORM_RENAMES,
    ignored=(FREQUENCIES,),
    adjust=add_one,
)
GEMMA3_FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("gemma3_text",),
    prefix="model.",
    renames=ATTENTION_RENAMES + POST_NORM_RENAMES + QK_NORM_RENAMES,
    ignored=(FREQUENCIES,),
    adjust=add_one,
)
