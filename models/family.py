"""What a family of models has to say of itself; each family's file ends with one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.config import EncoderConfig
from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.seq2seq import SourceEncoder
from models.seq2seq_config import Seq2SeqConfig
from runtime.lazy_module import LazyWeight

Renames = tuple[tuple[str, str], ...]
"""(regular expression over a checkpoint's name, replacement), tried in order; the first full match counts."""
Adjust = Callable[[dict[str, LazyWeight], DecoderConfig], dict[str, LazyWeight]]
"""A checkpoint's values under our names to ours: some are stored turned round, fused or shifted."""


def keep(tensors: dict[str, LazyWeight], _: object) -> dict[str, LazyWeight]:
    return tensors


@dataclass(frozen=True, slots=True)
class Family:
    """`prefix` is stripped from a checkpoint's names where it is there, then `renames` lead to ours."""

    encoder: Callable[[EncoderConfig], nn.Module]
    model_types: tuple[str, ...]
    """Those of config.json that compute the same."""
    prefix: str
    renames: Renames
    """Of the encoder, to names below `encoder.`. `q+k+v.weight` is the rows of three, in equal parts."""
    head_renames: Renames
    """Of the classification head, to names below `head.`."""
    head_activation: str
    """Between the two layers of the classification head."""
    word_head_renames: Renames = ()
    """Of the masked language model's head but its table, to `dense`, `norm` and `bias` below `head.`."""
    word_head_activation: str = ""
    """Between its two layers; the encoder's own where empty."""
    token_head_renames: Renames = ()
    """Of what a head over single tokens has before its last layer, to names below `head.`."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of weights that serving does not need: language-model heads, unused poolers."""
    spare: tuple[str, ...] = ()
    """The same of names below `encoder.` that are ours: what a checkpoint may have and its config.json not use."""
    tied_head: str = ""
    """A checkpoint's name of the masked language model's output head, which may be tied to the table of words."""
    adjust: Callable[[dict[str, LazyWeight], EncoderConfig], dict[str, LazyWeight]] = keep
    """As of DecoderFamily; names begin with `encoder.`."""


@dataclass(frozen=True, slots=True)
class DecoderFamily:
    """As `Family`, for language models that generate."""

    decoder: Callable[[DecoderConfig], Decoder]
    model_types: tuple[str, ...]
    prefix: str
    renames: Renames
    ignored: tuple[str, ...] = ()
    adjust: Adjust = keep


@dataclass(frozen=True, slots=True)
class Seq2SeqFamily:
    """As `Family`, for encoder-decoders. `renames` lead to names below `encoder.` and `decoder.`, and to `shared.`: the
    table of words of both."""

    encoder: Callable[[Seq2SeqConfig], SourceEncoder]
    model_types: tuple[str, ...]
    prefix: str
    renames: Renames
    ignored: tuple[str, ...] = ()
    adjust: Callable[[dict[str, LazyWeight], Seq2SeqConfig], dict[str, LazyWeight]] = keep
