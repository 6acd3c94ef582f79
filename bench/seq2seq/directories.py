"""The encoder-decoders that are compared: a real one, and shapes of others with random weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from bench.generation.decoders import find_source
from bench.seq2seq.detransliterator import SOURCE
from bench.seq2seq.features import WHISPER_PROMPT
from bench.whole_folders import filling

VOCAB_SIZE = 32_000
END, PAD = 0, VOCAB_SIZE - 1
"""As in OPUS-MT's models: the padding token, which answers begin with, is the last one."""


def build_marian() -> PreTrainedModel:
    """As large as OPUS-MT's usual models, with half their vocabulary: 60 million parameters."""
    config = MarianConfig(
        vocab_size=VOCAB_SIZE,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        eos_token_id=END,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
    )
    return MarianMTModel(config)


def build_whisper() -> PreTrainedModel:
    """As large as whisper-tiny, 37 million parameters: transformers' own default."""
    model = WhisperForConditionalGeneration(WhisperConfig())
    given = model.generation_config
    given.lang_to_id, given.no_timestamps_token_id = {"<|en|>": WHISPER_PROMPT[1]}, WHISPER_PROMPT[-1]
    return model


def write_pieces(out: Path, names: Mapping[str, int], vocab_size: int) -> None:
    """A vocabulary for converters that ask for one: token ids go in and come out. `names`: of some of them."""
    named = {token: name for name, token in names.items()}
    pieces = {named.get(token, f"piece{token}"): token for token in range(vocab_size)}
    Tokenizer(models.WordLevel(pieces, unk_token="piece1")).save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "piece1"}
    ends = {"eos_token": next(iter(names)), "pad_token": list(names)[1]}
    (out / "tokenizer_config.json").write_text(json.dumps(settings | ends))


@dataclass(frozen=True)
class RandomModel:
    """`names`: of tokens that have one, the end and the padding first."""

    build: Callable[[], PreTrainedModel]
    names: Mapping[str, int]
    vocab_size: int


WHISPER = "whisper-tiny"
WHISPER_NAMES = {
    "<|endoftext|>": 50257,
    "<|pad|>": 50256,
    "<|startoftranscript|>": WHISPER_PROMPT[0],
    "<|en|>": WHISPER_PROMPT[1],
    "<|transcribe|>": WHISPER_PROMPT[2],
    "<|nospeech|>": 50362,
    "<|notimestamps|>": WHISPER_PROMPT[3],
}
RANDOM = {
    "marian": RandomModel(build_marian, {"</s>": END, "<pad>": PAD}, VOCAB_SIZE),
    WHISPER: RandomModel(build_whisper, WHISPER_NAMES, 51_865),
}
DETRANSLITERATOR = "detransliterator"
MODELS = (DETRANSLITERATOR, "marian")
"""Those that read."""


def find_model(name: str, cache: Path) -> Path:
    """The model's directory, made first where there is none. Raises NotAvailable."""
    return find_source(name, SOURCE) if name == DETRANSLITERATOR else find_random(name, cache)


def find_random(name: str, cache: Path) -> Path:
    """Always the same weights."""
    folder = cache / "models" / f"{name}-seed-0"
    if not folder.exists():
        torch.manual_seed(0)
        model = RANDOM[name]
        with filling(folder) as unfinished:
            model.build().save_pretrained(unfinished)
            write_pieces(unfinished, model.names, model.vocab_size)
    return folder
