"""What config.json says of heads and of the positions that turn them, in transformers' words of versions 4 and 5."""

import math
from dataclasses import replace
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, require_number
from models.rotary import FREQUENCIES, RotaryConfig, longrope_attention_factor, yarn_attention_factor


def read_heads(path: Path, keys: Keys, hidden_size: int) -> tuple[int, int, int]:
    """Of queries, of keys and values, and the width of one."""
    num_heads = require_number(path, keys, "num_attention_heads")
    num_kv_heads = num_heads
    if keys.get("num_key_value_heads") is not None:
        num_kv_heads = require_number(path, keys, "num_key_value_heads")
    if num_heads % num_kv_heads:
        raise ModelDirectoryError(
            f"{path}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    if keys.get("head_dim") is not None:
        return num_heads, num_kv_heads, require_number(path, keys, "head_dim")
    if hidden_size % num_heads:
        raise ModelDirectoryError(
            f"{path}: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}; set head_dim"
        )
    return num_heads, num_kv_heads, hidden_size // num_heads


def read_rotary(path: Path, keys: Keys, head_dim: int, *, can_be_partial: bool = False) -> RotaryConfig:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as before transformers 5.

    `can_be_partial`: `partial_rotary_factor` of each head is turned.
    """
    name = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
    given = keys.get(name) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ModelDirectoryError(f"{path}: {name} must be one set of settings for all layers, but is {given!r}")
    given = {"rope_theta": keys["rope_theta"]} | {key: value for key, value in given.items() if value is not None}
    if can_be_partial:
        head_dim = count_turned(path, given.pop("partial_rotary_factor", keys["partial_rotary_factor"]), head_dim)
    return build_rotary(path, keys, name, given, head_dim)


def count_turned(path: Path, partial: object, head_dim: int) -> int:
    """Elements of a head. Raises ModelDirectoryError where they are no pairs."""
    num_turned = int(head_dim * partial) if is_positive(partial) else 0  # type: ignore[operator]
    if not 0 < num_turned <= head_dim or num_turned % 2:
        raise ModelDirectoryError(
            f"{path}: partial_rotary_factor {partial!r} must turn an even number of the {head_dim} elements of a head"
        )
    return num_turned


def build_rotary(path: Path, keys: Keys, name: str, given: Keys, head_dim: int) -> RotaryConfig:
    """Of one set of settings, `given`, which is the value of `name`."""
    # transformers lets the key outside win where both are there.
    if "original_max_position_embeddings" in keys:
        given = given | {"original_max_position_embeddings": keys["original_max_position_embeddings"]}
    scaling = str(given.get("rope_type", given.get("type", "default")))
    if scaling not in FREQUENCIES:
        raise ModelDirectoryError(
            f"{path}: {name} of the type {scaling!r} is not supported; supported are {', '.join(FREQUENCIES)}"
        )
    if given.get("partial_rotary_factor", 1) != 1:
        partial = given["partial_rotary_factor"]
        raise ModelDirectoryError(f"{path}: {name}: partial_rotary_factor {partial!r} is not supported; only 1 is")
    if head_dim % 2:
        raise ModelDirectoryError(f"{path}: head_dim {head_dim} is odd, but positions turn pairs of its elements")
    max_positions = require_number(path, keys, "max_position_embeddings")
    plain = RotaryConfig(head_dim, require_positive(path, given, "rope_theta"), scaling)
    return add_scaling(path, given, max_positions, plain)


def add_scaling(path: Path, given: Keys, max_positions: int, plain: RotaryConfig) -> RotaryConfig:
    """The numbers that the scaling needs, from `given`, which is what config.json says of positions."""
    scaling = plain.scaling
    if scaling == "default":
        return plain
    given = {"original_max_position_embeddings": max_positions} | given
    original = require_number(path, given, "original_max_position_embeddings")
    if scaling in ("yarn", "longrope"):
        given = {"factor": max_positions / original} | given
    factor = require_positive(path, given, "factor")
    if scaling == "linear":
        return replace(plain, factor=factor)
    if scaling == "dynamic":
        if max_positions != original:
            raise ModelDirectoryError(
                f"{path}: rotary positions of the type 'dynamic' are only served up to their original length; "
                f"set max_position_embeddings to {original}"
            )
        return plain
    scaled = replace(plain, factor=factor, original_max_positions=original)
    return {"llama3": add_llama3, "longrope": add_longrope, "yarn": add_yarn}[scaling](path, given, scaled)


def add_llama3(path: Path, given: Keys, config: RotaryConfig) -> RotaryConfig:
    low, high = (require_positive(path, given, f"{name}_freq_factor") for name in ("low", "high"))
    if low >= high:
        raise ModelDirectoryError(f"{path}: low_freq_factor {low} must be below high_freq_factor {high}")
    return replace(config, low_freq_factor=low, high_freq_factor=high)


def add_yarn(path: Path, given: Keys, config: RotaryConfig) -> RotaryConfig:
    given = {"beta_fast": 32, "beta_slow": 1} | given
    scales = [require_positive(path, given, name) for name in ("mscale", "mscale_all_dim") if given.get(name)]
    given = {"attention_factor": yarn_attention_factor(config.factor, scales)} | given
    return replace(
        config,
        beta_fast=require_positive(path, given, "beta_fast"),
        beta_slow=require_positive(path, given, "beta_slow"),
        is_truncated=bool(given.get("truncate", True)),
        attention_factor=require_positive(path, given, "attention_factor"),
    )


def add_longrope(path: Path, given: Keys, config: RotaryConfig) -> RotaryConfig:
    given = {"attention_factor": longrope_attention_factor(config.factor, config.original_max_positions)} | given
    short, long = (read_factors(path, given, name, config.dim // 2) for name in ("short_factor", "long_factor"))
    attention_factor = require_positive(path, given, "attention_factor")
    return replace(config, short_factors=short, long_factors=long, attention_factor=attention_factor)


def read_factors(path: Path, given: Keys, name: str, count: int) -> tuple[float, ...]:
    factors = given.get(name)
    if not isinstance(factors, list) or len(factors) != count or not all(map(is_positive, factors)):
        raise ModelDirectoryError(f"{path}: {name} must be {count} numbers over 0, but is {factors!r}")
    return tuple(map(float, factors))


def require_positive(path: Path, keys: Keys, name: str) -> float:
    """Raises ModelDirectoryError naming the key."""
    if name not in keys:
        raise ModelDirectoryError(f"{path}: the key {name!r} is missing")
    if not is_positive(keys[name]):
        raise ModelDirectoryError(f"{path}: {name} is {keys[name]!r}; it must be a number over 0")
    return float(keys[name])


def is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
