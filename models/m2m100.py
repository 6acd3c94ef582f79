"""M2M-100 (Fan et al., 2020), also NLLB-200 (Costa-jussà et al., 2022): norms before the blocks, fairseq's sinusoids.

What is written begins with the end token, and then that of the target language.
"""

from torch import Tensor

from models.bart import STACK_RENAMES, VERSIONS, WORD_RENAMES
from models.family import Seq2SeqFamily
from models.layers import offset_positions
from models.marian import SINUSOIDS
from models.positions import PositionTable, fairseq_sinusoids
from models.seq2seq import TextEncoder, WordEmbeddings
from models.seq2seq_config import Seq2SeqConfig


class CountedEmbeddings(WordEmbeddings):
    """Of sources, whose positions are counted as RoBERTa's: tokens that are not padding, from behind its id. What a
    decoder writes has none, so that these are its positions less a constant."""

    def __init__(self, config: Seq2SeqConfig):
        rows = fairseq_sinusoids(config.pad_token_id + 1 + config.encoder.max_positions, config.hidden_size)
        rows[config.pad_token_id] = 0
        super().__init__(config, config.encoder, PositionTable(rows))
        self.pad_token_id = config.pad_token_id

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return super().forward(input_ids, offset_positions(input_ids, position_ids, self.pad_token_id))


def build_encoder(config: Seq2SeqConfig) -> TextEncoder:
    return TextEncoder(config, CountedEmbeddings(config))


FAMILY = Seq2SeqFamily(
    encoder=build_encoder,
    model_types=("m2m_100",),
    prefix="model.",
    renames=STACK_RENAMES + WORD_RENAMES,
    ignored=(VERSIONS, SINUSOIDS),
)
