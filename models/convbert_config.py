"""What config.json says of ConvBERT's heads, half of which are convolutions, and of its feed-forward blocks."""

from dataclasses import dataclass
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, require_number


@dataclass(frozen=True, slots=True)
class ConvBertConfig:
    """What it has beside that of `EncoderConfig`."""

    num_heads: int
    """Of attention; there are as many of the convolution."""
    head_dim: int
    kernel_size: int
    num_groups: int
    """Of the feed-forward blocks' columns; each reads its own."""


def read_convbert(path: Path, keys: Keys) -> ConvBertConfig:
    """Raises ModelDirectoryError."""
    sizes = {
        name: require_number(path, keys, name) for name in ("hidden_size", "intermediate_size", "conv_kernel_size")
    }
    width, kernel_size = sizes["hidden_size"], sizes["conv_kernel_size"]
    num_heads = max(1, require_number(path, keys, "num_attention_heads") // require_number(path, keys, "head_ratio"))
    if width % (2 * num_heads):
        raise ModelDirectoryError(
            f"{path}: hidden_size {width} is no multiple of twice the {num_heads} heads of attention"
        )
    if not kernel_size % 2:
        raise ModelDirectoryError(f"{path}: conv_kernel_size {kernel_size} is not supported; only odd numbers are")
    num_groups = require_number(path, keys, "num_groups")
    for name in ("hidden_size", "intermediate_size"):
        if sizes[name] % num_groups:
            raise ModelDirectoryError(f"{path}: {name} {sizes[name]} is no multiple of num_groups {num_groups}")
    return ConvBertConfig(num_heads, width // (2 * num_heads), kernel_size, num_groups)
