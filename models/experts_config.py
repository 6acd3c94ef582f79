"""What config.json says of the experts of feed-forward blocks."""

from dataclasses import dataclass
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, require_number


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """See `padless::experts`."""

    num_experts: int
    top_k: int
    width: int
    """Of one expert, between its layers."""
    renormalizes: bool
    """The weights of a token's experts sum to 1."""
    layers: tuple[bool, ...]
    """Which have experts; the others have the usual feed-forward block."""
    shared_width: int = 0
    """Of one more, which all tokens go through; 0 for none."""


def read_experts(path: Path, keys: Keys, num_layers: int) -> ExpertsConfig | None:
    """Of decoders; None: no layer has any. Raises ModelDirectoryError."""
    model_type = keys["model_type"]
    if model_type == "mixtral":
        return build_experts(path, keys, "intermediate_size", renormalizes=True, layers=(True,) * num_layers)
    if model_type not in ("qwen2_moe", "qwen3_moe"):
        return None
    dense, step = keys["mlp_only_layers"], require_number(path, keys, "decoder_sparse_step")
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise ModelDirectoryError(f"{path}: mlp_only_layers must be the numbers of layers, but is {dense!r}")
    layers = tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))
    return build_experts(
        *(path, keys, "moe_intermediate_size"),
        renormalizes=bool(keys["norm_topk_prob"]),
        layers=layers,
        shared_width=require_number(path, keys, "shared_expert_intermediate_size") if model_type == "qwen2_moe" else 0,
    )


def read_nomic_experts(path: Path, keys: Keys, num_layers: int) -> ExpertsConfig | None:
    """Of NomicBERT v2, by the keys of its own code. Raises ModelDirectoryError."""
    every = require_number(path, keys, "moe_every_n_layers", least=0)
    layers = tuple(every > 0 and layer % every == 1 for layer in range(num_layers))
    if any(layers) and keys.get("activation_function") != "gelu":
        raise ModelDirectoryError(f"{path}: experts need the activation_function gelu; use a checkpoint with that")
    renormalizes = bool(keys.get("moe_normalize_expert_weights"))
    return build_experts(path, keys, "intermediate_size", "moe_top_k", renormalizes=renormalizes, layers=layers)


def build_experts(
    path: Path,
    keys: Keys,
    width: str,
    top_k: str = "num_experts_per_tok",
    *,
    renormalizes: bool,
    layers: tuple[bool, ...],
    shared_width: int = 0,
) -> ExpertsConfig | None:
    """`width`, `top_k`: the keys that have them."""
    if not any(layers):
        return None
    num_experts, num_chosen = (require_number(path, keys, name) for name in ("num_experts", top_k))
    if num_chosen > num_experts:
        raise ModelDirectoryError(f"{path}: {top_k} {num_chosen} is more than the {num_experts} experts there are")
    return ExpertsConfig(num_experts, num_chosen, require_number(path, keys, width), renormalizes, layers, shared_width)
