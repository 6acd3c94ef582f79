"""T5 (Raffel et al., 2019; v1.1 and Flan-T5: Chung et al., 2022), mT5 (Xue et al., 2020), UMT5 (Chung et al., 2023).

No positions: scores, which are not scaled, are biased by distance in buckets, by one table for all layers of a stack;
in UMT5 by one for each. The encoder alone (`T5EncoderModel`) embeds, as in sentence-T5 and GTR (Ni et al., 2021).
"""

from torch import Tensor, nn

from models.bart import build_text_encoder
from models.config import EncoderConfig
from models.family import Family, Renames, Seq2SeqFamily
from models.layers import Sequences
from models.seq2seq import SourceStack, WordEmbeddings
from runtime.lazy_module import LazyWeight


class T5Encoder(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        assert config.seq2seq is not None, f"{config.model_type} was read without its stacks. This is a bug."
        self.embeddings = WordEmbeddings(config.seq2seq, config.seq2seq.encoder)
        self.stack = SourceStack(config.seq2seq)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        rows: Tensor = self.stack(self.embeddings(input_ids, position_ids), sequences)
        return rows


def name_stack(stack: str, feed_forward: int) -> Renames:
    """The names of one stack; blocks number their parts, and `feed_forward` is the last."""
    block, part = rf"{stack}\.block\.(\d+)\.layer\.", rf"{feed_forward}\.DenseReluDense\."
    layer = r"stack.layers.\1."
    return (
        (rf"{stack}\.embed_tokens\.weight", r"embeddings.word.weight"),
        (block + r"0\.SelfAttention\.(q|k|v|o)\.weight", layer + r"attention.block.\2.weight"),
        (block + r"0\.SelfAttention\.relative_attention_bias\.weight", r"stack.biases.\1.rows.weight"),
        (block + r"0\.layer_norm\.weight", layer + r"attention.norm.weight"),
        (block + part + r"(?:wi|wi_1)\.weight", layer + r"feed_forward.block.up.weight"),
        (block + part + r"wi_0\.weight", layer + r"feed_forward.block.gate.weight"),
        (block + part + r"wo\.weight", layer + r"feed_forward.block.down.weight"),
        (block + rf"{feed_forward}\.layer_norm\.weight", layer + r"feed_forward.norm.weight"),
        (rf"{stack}\.final_layer_norm\.weight", r"stack.norm.weight"),
    )


ENCODER_RENAMES: Renames = (*name_stack("encoder", 1), (r"shared\.weight", r"shared.weight"))
CROSS = r"decoder\.block\.(\d+)\.layer\.1\."
CROSS_RENAMES: Renames = (
    (CROSS + r"EncDecAttention\.(q|o)\.weight", r"decoder.stack.layers.\1.cross_attention.block.\2.weight"),
    (CROSS + r"EncDecAttention\.(k|v)\.weight", r"encoder.keys.\1.\2.weight"),
    (CROSS + r"layer_norm\.weight", r"decoder.stack.layers.\1.cross_attention.norm.weight"),
)
CROSS_BIAS = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
"""In the first checkpoints, and never read."""


def share_table(tensors: dict[str, LazyWeight], _: EncoderConfig) -> dict[str, LazyWeight]:
    """Checkpoints have the encoder's words under its own name, under that which a decoder shares, or under both."""
    found = dict(tensors)
    shared = found.pop("encoder.shared.weight", None)
    if shared is not None:
        found.setdefault("encoder.embeddings.word.weight", shared)
    return found


FAMILY = Seq2SeqFamily(
    encoder=build_text_encoder,
    model_types=("t5", "mt5", "umt5"),
    prefix="",
    renames=(
        *((pattern, f"encoder.{target}") for pattern, target in name_stack("encoder", 1)),
        *((pattern, f"decoder.{target}") for pattern, target in name_stack("decoder", 2)),
        *CROSS_RENAMES,
        (r"shared\.weight", r"shared.weight"),
        (r"lm_head\.weight", r"decoder.lm_head.weight"),
    ),
    ignored=(CROSS_BIAS,),
)
ENCODER_FAMILY = Family(
    encoder=T5Encoder,
    model_types=("t5", "mt5", "umt5"),
    prefix="",
    renames=ENCODER_RENAMES,
    head_renames=(),
    head_activation="",
    ignored=(r"decoder\..*", r"lm_head\.weight"),
    adjust=share_table,
)
