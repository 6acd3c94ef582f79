"""What config.json says of DeBERTa's attention, and of the convolution beside its first layer."""

from dataclasses import dataclass
from pathlib import Path

from models.activations import read_activation
from models.defaults import Keys
from models.keys import ModelDirectoryError, require_number

TERMS = ("c2p", "p2c")


@dataclass(frozen=True, slots=True)
class DebertaConfig:
    """What it has beside that of `EncoderConfig`."""

    terms: tuple[str, ...]
    """Of scores: c2p, a query by the key's distance; p2c, a key by the query's."""
    has_distances: bool
    """False: no term but content by content, which is still scaled as if there were all of `terms`."""
    num_buckets: int
    """Distances over half as many share buckets; 0: each has its own."""
    max_distance: int
    """Those at least as far share the last bucket of their side."""
    shares_projections: bool
    """What makes queries and keys of tokens also makes those of distances."""
    has_distance_norm: bool
    has_positions: bool
    """Learned rows of positions, beside the distances."""
    kernel_size: int
    """Of the convolution; 0 for none."""
    kernel_activation: str

    @property
    def span(self) -> int:
        """Buckets to one side; the table of distances has twice as many rows."""
        return self.num_buckets or self.max_distance


def read_deberta(path: Path, keys: Keys) -> DebertaConfig:
    """Raises ModelDirectoryError."""
    check_sizes(path, keys)
    max_distance, num_buckets = (read_optional_number(path, keys, key) for key in SPANS)
    max_distance = max_distance or require_number(path, keys, "max_position_embeddings")
    if num_buckets and not 2 <= num_buckets // 2 * 2 < 2 * (max_distance - 1):
        raise ModelDirectoryError(
            f"{path}: position_buckets is {num_buckets}; it must be at least 2, and half of it less than the "
            f"{max_distance - 1} distances that are told apart"
        )
    return DebertaConfig(
        terms=read_terms(path, keys),
        has_distances=bool(keys["relative_attention"]),
        num_buckets=num_buckets,
        max_distance=max_distance,
        shares_projections=bool(keys["share_att_key"]),
        has_distance_norm=keys["norm_rel_ebd"] == "layer_norm",
        has_positions=bool(keys["position_biased_input"]),
        kernel_size=require_number(path, keys, "conv_kernel_size", least=0),
        kernel_activation=read_activation(path, keys["conv_act"]),
    )


SPANS = ("max_relative_positions", "position_buckets")


def read_optional_number(path: Path, keys: Keys, name: str) -> int:
    """0 where the file has a number below 1, which says that there is none."""
    return max(0, require_number(path, keys, name, least=-1))


def read_terms(path: Path, keys: Keys) -> tuple[str, ...]:
    """A list, or text with bars between them."""
    found = keys["pos_att_type"]
    names = [name.strip() for name in found.lower().split("|")] if isinstance(found, str) else found
    if not isinstance(names, list) or any(name not in TERMS for name in names):
        raise ModelDirectoryError(f"{path}: pos_att_type {found!r} is not supported; supported are {', '.join(TERMS)}")
    return tuple(term for term in TERMS if term in names)


def check_sizes(path: Path, keys: Keys) -> None:
    """Raises ModelDirectoryError for sizes that are not the usual ones, and a convolution that is off its centre."""
    width = require_number(path, keys, "hidden_size")
    wanted = {
        "attention_head_size": width // require_number(path, keys, "num_attention_heads"),
        "pooler_hidden_size": width,
    }
    for name, size in wanted.items():
        if keys.get(name, size) != size:
            raise ModelDirectoryError(f"{path}: {name} {keys[name]!r} is not supported; only {size} is")
    kernel_size = require_number(path, keys, "conv_kernel_size", least=0)
    if kernel_size and not kernel_size % 2:
        raise ModelDirectoryError(f"{path}: conv_kernel_size {kernel_size} is not supported; only odd numbers are")
