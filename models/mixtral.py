"""Mixtral (Jiang et al., 2024): Mistral whose feed-forward blocks are several experts.

Qwen3-MoE (Yang et al., 2025): Qwen3 with experts in some layers or all. Qwen2-MoE (Yang et al., 2024) has one more
expert, which all tokens go through.
"""

from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from models.fused_weights import stack_experts
from models.llama import ATTENTION_RENAMES, FREQUENCIES, LAYER, NORM_RENAMES, QK_NORM_RENAMES

BLOCK = LAYER + r"(?:block_sparse_moe|mlp)\."
ONE = BLOCK + r"experts\.(\d+)\."
"""Mixtral's gate, down and up are w1, w2 and w3."""
RENAMES: Renames = (
    (BLOCK + r"gate\.weight", r"layers.\1.feed_forward.router.weight"),
    (ONE + r"(?:w1|gate_proj)\.weight", r"layers.\1.feed_forward.experts.\2.gate"),
    (ONE + r"(?:w2|down_proj)\.weight", r"layers.\1.feed_forward.experts.\2.down"),
    (ONE + r"(?:w3|up_proj)\.weight", r"layers.\1.feed_forward.experts.\2.up"),
    (BLOCK + r"shared_expert\.(gate|up|down)_proj\.weight", r"layers.\1.feed_forward.shared.\2.weight"),
    (BLOCK + r"shared_expert_gate\.weight", r"layers.\1.feed_forward.shared_gate.weight"),
)
FUSED_RENAMES: Renames = (
    (BLOCK + r"experts\.gate_up_proj", r"layers.\1.feed_forward.up"),
    (BLOCK + r"experts\.down_proj", r"layers.\1.feed_forward.down"),
)
"""All experts of a layer as one tensor, as transformers 5 has them in memory."""

FAMILY = DecoderFamily(
    decoder=Decoder,
    model_types=("mixtral", "qwen2_moe", "qwen3_moe"),
    prefix="model.",
    renames=ATTENTION_RENAMES + NORM_RENAMES + QK_NORM_RENAMES + RENAMES + FUSED_RENAMES,
    ignored=(FREQUENCIES,),
    adjust=stack_experts,
)
