"""DistilBERT (Sanh et al., 2019): BERT with half the layers, no token types and no pooler. Same computation, own names.

Checkpoints with `sinusoidal_pos_embds` hold those positions as an ordinary table.
"""

from models.bert import POSITION_IDS, Bert
from models.family import Family, Renames

RENAMES: Renames = (
    (r"embeddings\.(word|position)_embeddings\.weight", r"embeddings.\1.weight"),
    (r"embeddings\.LayerNorm\.(weight|bias)", r"embeddings.norm.\1"),
    (r"transformer\.layer\.(\d+)\.attention\.(q|k|v)_lin\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (r"transformer\.layer\.(\d+)\.attention\.out_lin\.(\w+)", r"stack.layers.\1.attention.o.\2"),
    (r"transformer\.layer\.(\d+)\.sa_layer_norm\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (r"transformer\.layer\.(\d+)\.ffn\.lin1\.(\w+)", r"stack.layers.\1.feed_forward.up.\2"),
    (r"transformer\.layer\.(\d+)\.ffn\.lin2\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (r"transformer\.layer\.(\d+)\.output_layer_norm\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)
HEAD_RENAMES: Renames = (
    (r"pre_classifier\.(weight|bias)", r"dense.\1"),
    (r"classifier\.(weight|bias)", r"output.\1"),
)

WORD_HEAD_RENAMES: Renames = (
    (r"vocab_transform\.(weight|bias)", r"dense.\1"),
    (r"vocab_layer_norm\.(weight|bias)", r"norm.\1"),
    (r"vocab_projector\.bias", r"bias"),
)

FAMILY = Family(
    encoder=Bert,
    model_types=("distilbert",),
    prefix="distilbert.",
    renames=RENAMES,
    head_renames=HEAD_RENAMES,
    head_activation="relu",
    word_head_renames=WORD_HEAD_RENAMES,
    ignored=(POSITION_IDS, r"vocab_(transform|layer_norm|projector)\.(weight|bias)"),
    tied_head="vocab_projector.weight",
)
