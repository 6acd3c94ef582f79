"""Tiny random encoder-decoders of every family, made with transformers, and its logits for each target alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_decoders import randomize
from tiny_models import Ids, TinyModel
from torch import Tensor, nn

from models.info import read_info

BART_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 80,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,  # less than sequences have tokens
    "decoder_start_token_id": 0,
}
WHISPER_SIZES: dict[str, Any] = {
    key: value for key, value in BART_SIZES.items() if key != "max_position_embeddings"
} | {
    "num_mel_bins": 10,
    "max_source_positions": 40,
    "max_target_positions": 40,
    "bos_token_id": 3,
    "eos_token_id": 3,
}

CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "t5": lambda: transformers.T5Config(**T5_SIZES),
    "t5-gated": lambda: transformers.T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: transformers.MT5Config(**T5_SIZES),
    "umt5": lambda: transformers.UMT5Config(**T5_SIZES, feed_forward_proj="gated-silu"),
    "bart": lambda: transformers.BartConfig(**BART_SIZES),
    "mbart": lambda: transformers.MBartConfig(**BART_SIZES, scale_embedding=True, activation_function="relu"),
    "marian": lambda: transformers.MarianConfig(**BART_SIZES, scale_embedding=True, activation_function="swish"),
    "marian-two-vocabularies": lambda: transformers.MarianConfig(
        **BART_SIZES, decoder_vocab_size=90, share_encoder_decoder_embeddings=False
    ),
    "m2m_100": lambda: transformers.M2M100Config(**BART_SIZES),
    "m2m_100-untied": lambda: transformers.M2M100Config(**BART_SIZES, tie_word_embeddings=False),
    "pegasus": lambda: transformers.PegasusConfig(**BART_SIZES, scale_embedding=True),
    "whisper": lambda: transformers.WhisperConfig(**WHISPER_SIZES),
}
RARE = ("mt5", "marian-two-vocabularies", "m2m_100-untied", "pegasus")
"""What only slow tests are about: settings that differ from others in little."""
OWN_HEADS = ("t5-gated",)
"""What config.json does not tell of: T5's says that all heads are tied."""


def make_seq2seq(name: str, directory: Path) -> TinyModel:
    torch.set_num_threads(1)  # Other threads only wait for one another on matrices this small.
    torch.manual_seed(len(name))
    config = CONFIGS[name]()
    build = transformers.AutoModelForSpeechSeq2Seq if name == "whisper" else transformers.AutoModelForSeq2SeqLM
    theirs = build.from_config(config, attn_implementation="eager").eval()
    if name in OWN_HEADS:
        theirs.lm_head.weight = nn.Parameter(torch.zeros_like(theirs.lm_head.weight))
    randomize(theirs)
    soften(theirs)
    theirs.save_pretrained(directory)
    return TinyModel(directory, theirs, read_info(directory))


@torch.no_grad()
def soften(model: nn.Module) -> None:
    """T5 scales no scores: with queries as large as those of others it would look at one key alone. What is added to
    logits is a buffer, which is drawn here; sinusoids are a parameter, and put back."""
    for name, parameter in model.named_parameters():
        if name.endswith((".q.weight", ".k.weight")):
            parameter.mul_(0.5)
        elif name.endswith(("embed_tokens.weight", "shared.weight")):
            parameter.mul_(0.3)
    for name, buffer in model.named_buffers():
        if name == "final_logits_bias":
            buffer.normal_()
    for module in model.modules():
        if hasattr(module, "create_weight"):
            module.weight.copy_(module.create_weight())


@torch.no_grad()
def decode_alone(theirs: transformers.PreTrainedModel, sources: Sequence[Any], targets: Sequence[Ids]) -> Tensor:
    """transformers' logits after each token of each target: [num_tokens, vocab_size]."""
    return torch.cat(
        [
            theirs(
                torch.from_numpy(source)[None], decoder_input_ids=torch.from_numpy(target)[None], use_cache=False
            ).logits[0]
            for source, target in zip(sources, targets, strict=True)
        ]
    )
