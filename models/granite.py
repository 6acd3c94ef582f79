"""Granite 3 (Granite Team, 2024): Llama with its embeddings, scores, logits and what its blocks give scaled."""

import torch

from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.family import DecoderFamily
from models.llama import ATTENTION_RENAMES, NORM_RENAMES
from models.weights import DTYPES
from runtime.lazy_module import LazyWeight

LAST = (".attention.o.", ".feed_forward.down.")
"""The layers whose results are added to the input of a block."""


def scale_blocks(tensors: dict[str, LazyWeight], config: DecoderConfig) -> dict[str, LazyWeight]:
    """In fp32, by the weights of their last layers: nothing is left to multiply."""
    scale = config.residual_scale
    return {
        name: value.then(lambda rows: rows.to(torch.float32) * scale)
        if any(layer in name for layer in LAST) and value.like.dtype in DTYPES
        else value
        for name, value in tensors.items()
    }


FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("granite",),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES,
    adjust=scale_blocks,
)
