"""Phi-3 (Abdin et al., 2024), also Phi-3.5, Phi-4 and Phi-4-mini: Llama with fused weights, LongRoPE, and heads that
may turn in part.

LongRoPE has factors for short texts and for long ones. One of both is taken for all texts, by the longest that is
served: with `limits.max_input_tokens` up to `original_max_position_embeddings` the short ones, as vLLM and llama.cpp
do it. transformers begins with the short ones, and computes a text anew with the long ones when it outgrows that.
"""

from functools import partial

from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from models.fused_weights import cut_qkv, cut_stacked
from models.llama import ATTENTION_RENAMES, FREQUENCIES, LAYER, NORM_RENAMES
from models.weights import cut_joined
from runtime.lazy_module import LazyWeight

RENAMES: Renames = (
    (LAYER + r"self_attn\.qkv_proj\.(weight|bias)", r"layers.\1.attention.qkv.\2"),
    (LAYER + r"mlp\.gate_up_proj\.(weight|bias)", r"layers.\1.feed_forward.gate+up.\2"),
)

cut_heads = partial(cut_qkv, cut_stacked)


def cut_fused(tensors: dict[str, LazyWeight], config: DecoderConfig) -> dict[str, LazyWeight]:
    return cut_joined(cut_heads(tensors, config))


FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("phi3",),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES + RENAMES,
    ignored=(FREQUENCIES,),
    adjust=cut_fused,
)
