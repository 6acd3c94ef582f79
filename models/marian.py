"""Marian (Junczys-Dowmunt et al., 2018), as OPUS-MT's models: sinusoidal positions, and a number for each word's logit.

What is written begins with the padding token. Source and target may have a vocabulary each.
"""

from models.bart import STACK_RENAMES, VERSIONS, WORD_RENAMES, build_text_encoder
from models.family import Seq2SeqFamily

SINUSOIDS = r"(encoder|decoder)\.embed_positions\.weights?"
"""They follow from config.json."""

FAMILY = Seq2SeqFamily(
    encoder=build_text_encoder,
    model_types=("marian",),
    prefix="model.",
    renames=STACK_RENAMES + WORD_RENAMES,
    ignored=(VERSIONS, SINUSOIDS),
)
