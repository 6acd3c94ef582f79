"""Llama (Touvron et al., 2023), also SmolLM2 and TinyLlama; with windows Mistral (Jiang et al., 2023); with layers that
know no positions SmolLM3 (Bakouch et al., 2025).

StableLM (Bellagente et al., 2024) has LayerNorm, heads that turn in part, and blocks that may be beside each other.

Rotary positions, RMSNorm, gated feed-forward, several heads of queries to one of keys.
"""

from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames

LAYER = r"layers\.(\d+)\."

ATTENTION_RENAMES: Renames = (
    (r"embed_tokens\.weight", r"embedding.weight"),
    (LAYER + r"self_attn\.(q|k|v|o)_proj\.(weight|bias)", r"layers.\1.attention.\2.\3"),
    (LAYER + r"mlp\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.feed_forward.\2.\3"),
    (r"norm\.(weight|bias)", r"norm.\1"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
NORM_RENAMES: Renames = (
    (LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.attention_norm.\2"),
    (LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.feed_forward_norm.\2"),
)
QK_NORM_RENAMES: Renames = ((LAYER + r"self_attn\.(q|k)_norm\.weight", r"layers.\1.attention.\2_norm.weight"),)

FREQUENCIES = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
"""A buffer that transformers saved before 4.32: they follow from config.json."""

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("llama", "mistral", "smollm3", "stablelm"),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES,
    ignored=(FREQUENCIES,),
)
