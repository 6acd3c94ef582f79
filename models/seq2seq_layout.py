"""How the two stacks of an encoder-decoder are put together: what a family's code says, and no key of config.json."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seq2SeqLayout:
    """The defaults are Marian's but for its positions."""

    has_rms_norm: bool = False
    """Else LayerNorm, with a bias."""
    has_pre_norms: bool = False
    """Each block reads its input normalised, and a stack ends in a norm; else what a block gives is added, then
    normalised."""
    has_embedding_norm: bool = False
    has_bias: bool = True
    """Of all linear layers."""
    positions: str = "learned"
    """What is added to rows of words: `learned` rows, `sinusoidal` ones (see `models.positions`), `counted` ones, which
    are fairseq's sinusoids; or `distance`: nothing, as scores are biased by it."""
    has_layer_biases: bool = False
    """With distances: each layer has a bias of its own, else all of a stack share one."""


T5 = Seq2SeqLayout(has_rms_norm=True, has_pre_norms=True, has_bias=False, positions="distance")
LAYOUTS: dict[str, Seq2SeqLayout] = {
    "bart": Seq2SeqLayout(has_embedding_norm=True),
    "m2m_100": Seq2SeqLayout(has_pre_norms=True, positions="counted"),
    "marian": Seq2SeqLayout(positions="sinusoidal"),
    "mbart": Seq2SeqLayout(has_embedding_norm=True, has_pre_norms=True),
    "mt5": T5,
    "pegasus": Seq2SeqLayout(has_pre_norms=True, positions="sinusoidal"),
    "t5": T5,
    "umt5": Seq2SeqLayout(
        has_rms_norm=True, has_pre_norms=True, has_bias=False, positions="distance", has_layer_biases=True
    ),
    "whisper": Seq2SeqLayout(has_pre_norms=True),
}
"""By `model_type`."""
