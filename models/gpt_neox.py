"""GPT-NeoX (Black et al., 2022), also Pythia (Biderman et al., 2023): attention and feed-forward beside each other,
heads that turn in part, one weight for queries, keys and values.

Falcon (Almazrouei et al., 2023) has one head of keys for all queries, or one for a group of them.
"""

from functools import partial

from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from models.fused_weights import cut_groups, cut_qkv

LAYER = r"(?:h|layers)\.(\d+)\."
BLOCK_RENAMES: Renames = (
    (LAYER + r"(?:self_)?attention\.query_key_value\.(\w+)", r"layers.\1.attention.qkv.\2"),
    (LAYER + r"(?:self_)?attention\.dense\.(\w+)", r"layers.\1.attention.o.\2"),
    (LAYER + r"mlp\.dense_h_to_4h\.(\w+)", r"layers.\1.feed_forward.up.\2"),
    (LAYER + r"mlp\.dense_4h_to_h\.(\w+)", r"layers.\1.feed_forward.down.\2"),
    (LAYER + r"(?:input_layernorm|ln_attn)\.(\w+)", r"layers.\1.attention_norm.\2"),
    (LAYER + r"(?:post_attention_layernorm|ln_mlp)\.(\w+)", r"layers.\1.feed_forward_norm.\2"),
)
NEOX_RENAMES: Renames = (
    (r"embed_in\.weight", r"embedding.weight"),
    (r"final_layer_norm\.(\w+)", r"norm.\1"),
    (r"embed_out\.weight", r"lm_head.weight"),
)
FALCON_RENAMES: Renames = (
    (r"word_embeddings\.weight", r"embedding.weight"),
    (r"ln_f\.(\w+)", r"norm.\1"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
BUFFERS = r"(?:h|layers)\.\d+\.(?:self_)?attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
"""Masks and frequencies that older files hold: they follow from config.json."""

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("gpt_neox",),
    prefix="gpt_neox.",
    renames=BLOCK_RENAMES + NEOX_RENAMES,
    ignored=(BUFFERS,),
    adjust=partial(cut_qkv, cut_groups),
)
FALCON_FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("falcon",),
    prefix="transformer.",
    renames=BLOCK_RENAMES + FALCON_RENAMES,
    ignored=(BUFFERS,),
    adjust=partial(cut_qkv, cut_groups),
)
