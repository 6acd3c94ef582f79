"""BART (Lewis et al., 2019): learned positions, and embeddings that are normalised before the first layer.

mBART (Liu et al., 2020) has its norms before the blocks; what it writes begins with the token of a language.
"""

from torch import Tensor

from models.family import Renames, Seq2SeqFamily
from models.seq2seq import TextEncoder, WordEmbeddings
from models.seq2seq_config import Seq2SeqConfig
from runtime.lazy_module import LazyWeight

LAYER = r"(encoder|decoder)\.layers\.(\d+)\."
OWN = r"\1.stack.layers.\2."
CROSS = r"decoder\.layers\.(\d+)\.encoder_attn"
STACK_RENAMES: Renames = (
    (LAYER + r"self_attn\.(q|k|v)_proj\.(\w+)", OWN + r"attention.block.\3.\4"),
    (LAYER + r"self_attn\.out_proj\.(\w+)", OWN + r"attention.block.o.\3"),
    (LAYER + r"self_attn_layer_norm\.(\w+)", OWN + r"attention.norm.\3"),
    (CROSS + r"\.q_proj\.(\w+)", r"decoder.stack.layers.\1.cross_attention.block.q.\2"),
    # Of what a source is to a layer of the decoder the encoder takes care.
    (CROSS + r"\.(k|v)_proj\.(\w+)", r"encoder.keys.\1.\2.\3"),
    (CROSS + r"\.out_proj\.(\w+)", r"decoder.stack.layers.\1.cross_attention.block.o.\2"),
    (CROSS + r"_layer_norm\.(\w+)", r"decoder.stack.layers.\1.cross_attention.norm.\2"),
    (LAYER + r"fc1\.(\w+)", OWN + r"feed_forward.block.up.\3"),
    (LAYER + r"fc2\.(\w+)", OWN + r"feed_forward.block.down.\3"),
    (LAYER + r"final_layer_norm\.(\w+)", OWN + r"feed_forward.norm.\3"),
    (r"(encoder|decoder)\.layer_norm\.(\w+)", r"\1.stack.norm.\2"),
)
WORD_RENAMES: Renames = (
    (r"shared\.weight", r"shared.weight"),
    (r"(encoder|decoder)\.embed_tokens\.weight", r"\1.embeddings.word.weight"),
    (r"lm_head\.weight", r"decoder.lm_head.weight"),
    (r"final_logits_bias", r"decoder.logit_bias"),
)
EMBEDDING_RENAMES: Renames = (
    (r"(encoder|decoder)\.embed_positions\.weight", r"\1.embeddings.position.weight"),
    (r"(encoder|decoder)\.layernorm_embedding\.(\w+)", r"\1.embeddings.norm.\2"),
)
VERSIONS = r"(encoder|decoder)\.version"
"""Left by fairseq."""

NUM_UNUSED = 2
"""The first rows of positions are those of no token."""


def build_text_encoder(config: Seq2SeqConfig) -> TextEncoder:
    return TextEncoder(config, WordEmbeddings(config, config.encoder))


def cut_positions(tensors: dict[str, LazyWeight], _: Seq2SeqConfig) -> dict[str, LazyWeight]:
    return {
        name: value.then(drop_unused) if name.endswith(".embeddings.position.weight") else value
        for name, value in tensors.items()
    }


def drop_unused(rows: Tensor) -> Tensor:
    return rows[NUM_UNUSED:]


FAMILY = Seq2SeqFamily(
    encoder=build_text_encoder,
    model_types=("bart", "mbart"),
    prefix="model.",
    renames=STACK_RENAMES + WORD_RENAMES + EMBEDDING_RENAMES,
    ignored=(VERSIONS,),
    adjust=cut_positions,
)
