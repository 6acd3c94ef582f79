"""How the layers of a decoder are put together: what a family's code says, and a few of its keys."""

from dataclasses import dataclass, replace
from pathlib import Path

from models.decoder_defaults import Keys
from models.keys import ModelDirectoryError


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """The defaults are Llama's."""

    has_rms_norm: bool = True
    """Else LayerNorm."""
    has_norm_bias: bool = False
    """Of LayerNorm."""
    has_pre_norms: bool = True
    """What attention and feed-forward read is normalised."""
    has_post_norms: bool = False
    """What they give is normalised, before it is added."""
    qk_norm: str = ""
    """Of queries and keys: an RMSNorm over each `head`, or over the `row` of all heads; none where empty."""
    is_gated: bool = True
    """The feed-forward block is act(gate) * up instead of act(up)."""
    num_parallel_norms: int = 0
    """Over 0 both blocks read the layer's input, through one norm or each its own, and both are added to it."""


NEOX = DecoderLayout(has_rms_norm=False, has_norm_bias=True, is_gated=False)
LAYOUTS: dict[str, DecoderLayout] = {
    "cohere": DecoderLayout(has_rms_norm=False),
    "cohere2": DecoderLayout(has_rms_norm=False),
    "falcon": NEOX,
    "gemma2": DecoderLayout(has_post_norms=True),
    "gemma3_text": DecoderLayout(has_post_norms=True, qk_norm="head"),
    "gpt2": NEOX,
    "gpt_neox": NEOX,
    "olmo2": DecoderLayout(has_pre_norms=False, has_post_norms=True, qk_norm="row"),
    "olmo3": DecoderLayout(has_pre_norms=False, has_post_norms=True, qk_norm="row"),
    "qwen3": DecoderLayout(qk_norm="head"),
    "qwen3_moe": DecoderLayout(qk_norm="head"),
    "stablelm": DecoderLayout(has_rms_norm=False, has_norm_bias=True),
}
"""By `model_type`; those that are not here are like Llama."""


def read_layout(path: Path, keys: Keys) -> DecoderLayout:
    layout = LAYOUTS.get(keys["model_type"], DecoderLayout())
    return replace(layout, num_parallel_norms=count_parallel_norms(path, keys))


def count_parallel_norms(path: Path, keys: Keys) -> int:
    model_type = keys["model_type"]
    if model_type in ("cohere", "cohere2"):
        return 1
    if model_type == "gpt_neox":
        return 2 if keys["use_parallel_residual"] else 0
    if model_type == "stablelm":
        return 1 if keys["use_parallel_residual"] else 0
    if model_type != "falcon":
        return 0
    if not keys["new_decoder_architecture"]:
        return 1 if keys["parallel_attn"] else 0
    num_norms = keys.get("num_ln_in_parallel_attn", 2)
    if num_norms not in (1, 2):
        raise ModelDirectoryError(f"{path}: num_ln_in_parallel_attn is {num_norms!r}; it must be 1 or 2")
    return int(num_norms)
