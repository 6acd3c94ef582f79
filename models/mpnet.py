"""MPNet (Song et al., 2020): RoBERTa's positions, and scores biased by distance in buckets shared by all layers."""

import math

import torch
from torch import Tensor, nn

from models.bert import EMBEDDING_RENAMES, POOLER, POSITION_IDS
from models.config import EncoderConfig
from models.family import Family, Renames
from models.layers import Embeddings, Encoder, Sequences, offset_positions
from models.roberta import LM_HEAD, TIED_HEAD, TWO_LAYER_HEAD_RENAMES, WORD_HEAD_RENAMES

NUM_BUCKETS = 32
MAX_DISTANCE = 128
"""Everything as far away or farther shares the last bucket of its direction."""


class MPNet(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size]."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.embeddings = Embeddings(config)
        self.relative = nn.Embedding(NUM_BUCKETS, config.num_heads)
        self.stack = Encoder(config)
        reach = config.max_position_embeddings - config.pad_token_id - 1
        # On the CPU whatever the default device is: models are built on `meta`, and no checkpoint fills this.
        distances = torch.arange(1 - reach, reach, device="cpu")
        self.register_buffer("bucket_ids", distance_buckets(distances), persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        positions = offset_positions(input_ids, position_ids, self.pad_token_id)
        hidden_states = self.embeddings(input_ids, positions, token_type_ids)
        bias = self.relative(self.bucket_ids).transpose(0, 1).contiguous()
        return self.stack(hidden_states, sequences, bias)


def distance_buckets(distances: Tensor) -> Tensor:
    """T5's buckets (Raffel et al., 2019), [n] -> [n]: half for keys behind the query, half for keys ahead of it.

    In each half the first half of the buckets are exact distances, the others grow with its logarithm.
    """
    half = NUM_BUCKETS // 2
    exact = half // 2
    far = distances.abs()
    # The smaller ones are not used: 1 keeps the logarithm finite.
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    grown = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, grown) + (distances > 0).long() * half


RENAMES: Renames = (
    (r"encoder\.relative_attention_bias\.weight", r"relative.weight"),
    (r"encoder\.layer\.(\d+)\.attention\.attn\.(q|k|v|o)\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.LayerNorm\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"stack.layers.\1.feed_forward.up.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)

FAMILY = Family(
    encoder=MPNet,
    model_types=("mpnet",),
    prefix="mpnet.",
    renames=EMBEDDING_RENAMES + RENAMES,
    head_renames=TWO_LAYER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    word_head_activation="gelu",
    ignored=(POSITION_IDS, POOLER, LM_HEAD),
    tied_head=TIED_HEAD,
)
