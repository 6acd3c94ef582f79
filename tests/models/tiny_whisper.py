"""A tiny random Whisper with all that its directory has. Its logits are far apart: it is sure of what it says."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_decoders import randomize
from tiny_seq2seq import soften

from tests.whisper_files import MAX_TARGET_TOKENS, NUM_MEL_BINS, WINDOW_S, build_tokenizer, describe_generation

SIZES: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "num_mel_bins": NUM_MEL_BINS,
    "max_source_positions": WINDOW_S * 50,
    "max_target_positions": MAX_TARGET_TOKENS,
}


def make_whisper(directory: Path, *, is_multilingual: bool = True, seed: int = 0) -> Any:
    """The directory, and transformers' model."""
    torch.set_num_threads(1)  # Other threads only wait for one another on matrices this small.
    torch.manual_seed(seed)
    raw = build_tokenizer()
    settings = describe_generation(raw, is_multilingual=is_multilingual)
    special = {name: settings[name] for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    config = transformers.WhisperConfig(
        vocab_size=raw.get_vocab_size(), bos_token_id=settings["eos_token_id"], **special, **SIZES
    )
    model = transformers.WhisperForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    randomize(model)
    soften(model)
    with torch.no_grad():
        model.model.decoder.layer_norm.weight.mul_(8)
    model.generation_config = transformers.GenerationConfig(**settings)
    model.save_pretrained(directory)
    raw.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer"}))
    transformers.WhisperFeatureExtractor(NUM_MEL_BINS, chunk_length=WINDOW_S).save_pretrained(directory)
    return model
