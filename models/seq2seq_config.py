"""HF's config.json to one frozen description of an encoder-decoder. The only reader of HF's keys for these."""

from dataclasses import dataclass
from pathlib import Path

from models.activations import read_activation
from models.defaults import Keys
from models.distances import Buckets
from models.keys import ModelDirectoryError, check_supported, read_architecture, read_keys, require_number
from models.seq2seq_info import count_target_words
from models.seq2seq_layout import LAYOUTS, Seq2SeqLayout

T5_TYPES = ("mt5", "t5", "umt5")


@dataclass(frozen=True, slots=True)
class StackConfig:
    """One of the two stacks of layers."""

    vocab_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    """Tokens that a sequence may have; frames, of an encoder of speech."""


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """An encoder-decoder, in our names."""

    architecture: str
    model_type: str
    hidden_size: int
    encoder: StackConfig
    decoder: StackConfig
    activation: str
    is_gated: bool
    """Feed-forward blocks are act(gate) * up instead of act(up)."""
    norm_eps: float
    pad_token_id: int
    is_tied: bool
    """A checkpoint without an output head has it in the decoder's table of embeddings."""
    layout: Seq2SeqLayout
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    buckets: Buckets | None = None
    """Of distances, in T5."""
    num_mel_bins: int = 0
    """Of each frame, where the encoder reads those."""
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) of cross-attention whose weights the decoder can tell."""


def read_seq2seq_config(directory: Path) -> Seq2SeqConfig:
    """Raises ModelDirectoryError where a key is missing or its value is one we do not know."""
    path = directory / "config.json"
    keys = read_keys(directory)
    check_supported(path, keys)
    return (read_t5 if keys["model_type"] in T5_TYPES else read_bart)(path, keys)


def read_t5(path: Path, keys: Keys) -> Seq2SeqConfig:
    activation, is_gated = read_feed_forward(path, keys)
    hidden_size, num_layers = (require_number(path, keys, name) for name in ("hidden_size", "encoder_layers"))
    stacks = [
        StackConfig(
            vocab_size=require_number(path, keys, "vocab_size"),
            num_layers=count,
            num_heads=require_number(path, keys, "encoder_attention_heads"),
            head_dim=require_number(path, keys, "head_dim"),
            intermediate_size=require_number(path, keys, "encoder_ffn_dim"),
            max_positions=require_number(path, keys, "max_position_embeddings"),
        )
        for count in (num_layers, require_number(path, {"decoder_layers": num_layers} | keys, "decoder_layers"))
    ]
    return Seq2SeqConfig(
        architecture=read_architecture(keys),
        model_type=keys["model_type"],
        hidden_size=hidden_size,
        encoder=stacks[0],
        decoder=stacks[1],
        activation=activation,
        is_gated=is_gated,
        norm_eps=float(keys["layer_norm_eps"]),
        pad_token_id=require_number(path, keys, "pad_token_id", least=0),
        # Where a file has no head, whatever it says: the key tells of the scale.
        is_tied=True,
        layout=LAYOUTS[keys["model_type"]],
        logit_scale=hidden_size**-0.5 if scales_logits(keys) else 1.0,
        buckets=read_buckets(path, keys),
    )


def read_feed_forward(path: Path, keys: Keys) -> tuple[str, bool]:
    """(activation, gated): `relu`, or `gated-gelu` and the like. Raises ModelDirectoryError."""
    given = str(keys["feed_forward_proj"])
    first, _, gated = given.partition("-")
    if first != "gated":
        return read_activation(path, given), False
    # The first checkpoints say gelu and mean the other: transformers has read it so ever since.
    return read_activation(path, "gelu_new" if gated == "gelu" else gated), True


def scales_logits(keys: Keys) -> bool:
    """Under a key that newer files have beside tie_word_embeddings, which used to say it. mT5 never does."""
    is_scaled = keys.get("scale_decoder_outputs", keys["tie_word_embeddings"])
    return keys["model_type"] != "mt5" and bool(is_scaled)


def read_buckets(path: Path, keys: Keys) -> Buckets:
    count = require_number(path, keys, "relative_attention_num_buckets", least=4)
    farthest = require_number(path, keys, "relative_attention_max_distance")
    if farthest <= count // 2:
        raise ModelDirectoryError(
            f"{path}: relative_attention_max_distance is {farthest}; it must be over half of "
            f"relative_attention_num_buckets, {count // 2}"
        )
    return Buckets(count, farthest)


def read_bart(path: Path, keys: Keys) -> Seq2SeqConfig:
    """BART and its kin."""
    hidden_size, vocab_size = (require_number(path, keys, name) for name in ("hidden_size", "vocab_size"))
    positions = require_number(path, keys, "max_position_embeddings")
    is_whisper = keys["model_type"] == "whisper"
    target_positions = require_number(path, keys, "max_target_positions") if is_whisper else positions
    return Seq2SeqConfig(
        architecture=read_architecture(keys),
        model_type=keys["model_type"],
        hidden_size=hidden_size,
        encoder=read_stack(path, keys, "encoder", hidden_size, vocab_size, positions),
        decoder=read_stack(path, keys, "decoder", hidden_size, count_target_words(path, keys), target_positions),
        activation=read_activation(path, keys["hidden_act"]),
        is_gated=False,
        norm_eps=float(keys["layer_norm_eps"]),
        pad_token_id=require_number(path, keys, "pad_token_id", least=0),
        is_tied=bool(keys["tie_word_embeddings"]),
        layout=LAYOUTS[keys["model_type"]],
        embedding_scale=hidden_size**0.5 if keys["scale_embedding"] else 1.0,
        num_mel_bins=require_number(path, keys, "num_mel_bins") if is_whisper else 0,
    )


def read_stack(path: Path, keys: Keys, name: str, hidden_size: int, vocab_size: int, max_positions: int) -> StackConfig:
    """`name`: encoder or decoder. Raises ModelDirectoryError."""
    num_heads = require_number(path, keys, f"{name}_attention_heads")
    if hidden_size % num_heads:
        raise ModelDirectoryError(f"{path}: d_model {hidden_size} is no multiple of {name}_attention_heads {num_heads}")
    return StackConfig(
        vocab_size=vocab_size,
        num_layers=require_number(path, keys, f"{name}_layers"),
        num_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=require_number(path, keys, f"{name}_ffn_dim"),
        max_positions=max_positions,
    )
