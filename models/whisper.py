"""Whisper (Radford et al., 2022): hears 30 seconds as 3,000 frames of a mel spectrogram, and writes what was said.

Two convolutions halve the frames; both are linear layers over rows of two frames each.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.bart import EMBEDDING_RENAMES, STACK_RENAMES, WORD_RENAMES
from models.family import Renames, Seq2SeqFamily
from models.seq2seq import SourceEncoder
from models.seq2seq_config import Seq2SeqConfig
from runtime.lazy_module import LazyWeight
from runtime.ops import unfold

WIDTH = 3
"""Of both convolutions."""


class FrameEmbeddings(nn.Module):
    """Rows of two frames to rows of the encoder: [num_tokens, 2 * num_mel_bins] -> [num_tokens, hidden_size].

    The first convolution, over frames, sees from the last frame of the row before to the first of the one behind; the
    second, over what the first gives, every other of it: from the last one of the row before. Beyond the ends of a
    sequence are zeros, as in the convolutions.
    """

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.num_mel_bins, self.width = config.num_mel_bins, config.hidden_size
        self.first = nn.Linear((WIDTH + 1) * self.num_mel_bins, 2 * self.width)
        self.second = nn.Linear(WIDTH * self.width, self.width)
        self.position = nn.Embedding(config.encoder.max_positions, self.width)

    def forward(self, features: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        frames = unfold.OP(features, cu_seqlens, WIDTH)[:, self.num_mel_bins : (WIDTH + 2) * self.num_mel_bins]
        rows = functional.gelu(self.first(frames))
        frames = unfold.OP(rows, cu_seqlens, WIDTH)[:, self.width : (WIDTH + 1) * self.width]
        embedded: Tensor = functional.gelu(self.second(frames)) + self.position(position_ids)
        return embedded


class SpeechEncoder(SourceEncoder):
    """Of frames. A source may be shorter than the 30 seconds that Whisper was trained with; not longer."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, FrameEmbeddings(config))
        self.num_features = 2 * config.num_mel_bins

    def forward(
        self,
        features: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        slot_mapping: Tensor,
        kv_cache: Tensor,
    ) -> dict[str, Tensor]:
        """`features`: fp32 [num_tokens, 2 * num_mel_bins], row t being frames 2 t and 2 t + 1."""
        embedded = self.embeddings(features, position_ids, cu_seqlens)
        return self.encode(embedded, cu_seqlens, max_seqlen, slot_mapping, kv_cache)


RENAMES: Renames = (
    (r"encoder\.conv1\.(\w+)", r"encoder.embeddings.first.\1"),
    (r"encoder\.conv2\.(\w+)", r"encoder.embeddings.second.\1"),
    (r"proj_out\.weight", r"decoder.lm_head.weight"),
)


def adjust_weights(tensors: dict[str, LazyWeight], _: Seq2SeqConfig) -> dict[str, LazyWeight]:
    """Convolutions to linear layers; and zeros as the bias that keys have none of, so that they are one layer with the
    others."""
    changes = {
        "encoder.embeddings.first.weight": widen_taps,
        "encoder.embeddings.first.bias": repeat_bias,
        "encoder.embeddings.second.weight": line_up_taps,
    }
    found = {name: value.then(changes[name]) if name in changes else value for name, value in tensors.items()}
    for name, value in tensors.items():
        if name.endswith(".k.weight"):
            found.setdefault(f"{name.removesuffix('weight')}bias", value.then(zero_bias))
    return found


def line_up_taps(weight: Tensor) -> Tensor:
    """[out, in, taps] to [out, taps * in], as `padless::unfold` lays rows side by side."""
    return weight.transpose(1, 2).flatten(1)


def widen_taps(weight: Tensor) -> Tensor:
    """To [2 * out, (taps + 1) * in], of two frames from one more than the taps."""
    taps = line_up_taps(weight)
    nothing = torch.zeros_like(weight[:, :, 0])
    return torch.cat([torch.cat([taps, nothing], dim=1), torch.cat([nothing, taps], dim=1)])


def repeat_bias(bias: Tensor) -> Tensor:
    return bias.repeat(2)


def zero_bias(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight[:, 0])


FAMILY = Seq2SeqFamily(
    encoder=SpeechEncoder,
    model_types=("whisper",),
    prefix="model.",
    renames=STACK_RENAMES + WORD_RENAMES + EMBEDDING_RENAMES + RENAMES,
    adjust=adjust_weights,
)
