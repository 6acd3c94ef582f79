"""GPT-2 (Radford et al., 2019): learned positions, pre-LN layers, one weight for queries, keys and values."""

from functools import partial

from torch import Tensor, nn

from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.family import DecoderFamily, Renames
from runtime.lazy_module import LazyWeight


class Gpt2(Decoder):
    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.embedding(input_ids) + self.position(position_ids)


def adjust_linears(tensors: dict[str, LazyWeight], _: DecoderConfig) -> dict[str, LazyWeight]:
    """Their weights lie [in, out], and those of queries, keys and values beside one another."""
    adjusted: dict[str, LazyWeight] = {}
    for name, value in tensors.items():
        if value.like.ndim == 2 and (".attention." in name or ".feed_forward." in name):
            value = value.then(Tensor.t)
        if ".qkv." in name and value.like.ndim:
            thirds = [value.then(partial(take_third, index)) for index in range(3)]
            adjusted |= {name.replace("qkv", part): third for part, third in zip("qkv", thirds, strict=True)}
        else:
            adjusted[name] = value
    return adjusted


def take_third(index: int, value: Tensor) -> Tensor:
    return value.tensor_split(3)[index]


LAYER = r"h\.(\d+)\."
RENAMES: Renames = (
    (r"wte\.weight", r"embedding.weight"),
    (r"wpe\.weight", r"position.weight"),
    (LAYER + r"ln_1\.(\w+)", r"layers.\1.attention_norm.\2"),
    (LAYER + r"attn\.c_attn\.(\w+)", r"layers.\1.attention.qkv.\2"),
    (LAYER + r"attn\.c_proj\.(\w+)", r"layers.\1.attention.o.\2"),
    (LAYER + r"ln_2\.(\w+)", r"layers.\1.feed_forward_norm.\2"),
    (LAYER + r"mlp\.c_fc\.(\w+)", r"layers.\1.feed_forward.up.\2"),
    (LAYER + r"mlp\.c_proj\.(\w+)", r"layers.\1.feed_forward.down.\2"),
    (r"ln_f\.(\w+)", r"norm.\1"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
CAUSAL_MASK = r"h\.\d+\.attn\.(bias|masked_bias)"
"""Buffers that transformers saved before 4.32."""

FAMILY = DecoderFamily(
    decoder=Gpt2,
    model_types=("gpt2",),
    prefix="transformer.",
    renames=RENAMES,
    ignored=(CAUSAL_MASK,),
    adjust=adjust_linears,
)
