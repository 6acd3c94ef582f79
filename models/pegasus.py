"""PEGASUS (Zhang et al., 2020): Marian's positions, with norms before the blocks. It summarises."""

from models.bart import STACK_RENAMES, VERSIONS, WORD_RENAMES, build_text_encoder
from models.family import Seq2SeqFamily
from models.marian import SINUSOIDS

FAMILY = Seq2SeqFamily(
    encoder=build_text_encoder,
    model_types=("pegasus",),
    prefix="model.",
    renames=STACK_RENAMES + WORD_RENAMES,
    ignored=(VERSIONS, SINUSOIDS),
)
