"""GTE and mGTE (Zhang et al., 2024), Arctic Embed v2 M: NomicBERT with biases, but for those of the gate.

`model_type` new is the same under the names of the code that came first.
"""

from dataclasses import replace

from models.bert import POSITION_IDS
from models.family import Family, Renames
from models.nomic_bert import FREQUENCIES, NATIVE_RENAMES, NomicBert

OWN_LAYER = r"encoder\.layer\.(\d+)\."
OWN_RENAMES: Renames = (
    (OWN_LAYER + r"attention\.qkv_proj\.(\w+)", r"stack.layers.\1.attention.q+k+v.\2"),
    (OWN_LAYER + r"attention\.(q|k|v|o)_proj\.(\w+)", r"stack.layers.\1.attention.\2.\3"),
    (OWN_LAYER + r"attn_ln\.(\w+)", r"stack.layers.\1.attention_norm.\2"),
    (OWN_LAYER + r"mlp\.up_gate_proj\.(\w+)", r"stack.layers.\1.feed_forward.up+gate.\2"),
    (OWN_LAYER + r"mlp\.down_proj\.(\w+)", r"stack.layers.\1.feed_forward.down.\2"),
    (OWN_LAYER + r"mlp_ln\.(\w+)", r"stack.layers.\1.feed_forward_norm.\2"),
)
POOLER = r"(?:new\.)?pooler\.dense\.(weight|bias)"

FAMILY = Family(
    encoder=NomicBert,
    model_types=("gte",),
    prefix="gte.",
    # transformers' own files of this type may still have the prefix of the code before it.
    renames=tuple((rf"(?:new\.)?{pattern}", target) for pattern, target in NATIVE_RENAMES + OWN_RENAMES),
    head_renames=((POOLER, r"dense.\1"), (r"classifier\.(weight|bias)", r"output.\1")),
    head_activation="tanh",
    word_head_renames=(
        (r"lm_head\.dense\.(weight|bias)", r"dense.\1"),
        (r"lm_head\.(?:norm|layer_norm)\.(weight|bias)", r"norm.\1"),
        (r"lm_head\.decoder\.bias", r"bias"),
    ),
    word_head_activation="gelu",
    ignored=(POSITION_IDS, FREQUENCIES, POOLER, r"lm_head\..*"),
    tied_head="lm_head.decoder.weight",
)
NEW_FAMILY = replace(FAMILY, model_types=("new",), prefix="new.")
