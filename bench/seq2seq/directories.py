"""The encoder-decoders that are compared: a real one, and shapes of others with random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import MarianConfig, MarianMTModel, PreTrainedModel

from bench.generation.decoders import find_source
from bench.seq2seq.detransliterator import SOURCE

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


def write_pieces(out: Path) -> None:
    """A vocabulary for converters that ask for one: token ids go in and come out."""
    pieces = {f"piece{index}": index for index in range(VOCAB_SIZE)} | {"</s>": END, "<pad>": PAD}
    del pieces[f"piece{END}"], pieces[f"piece{PAD}"]
    Tokenizer(models.WordLevel(pieces, unk_token="piece1")).save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "piece1"}))


RANDOM: dict[str, Callable[[], PreTrainedModel]] = {"marian": build_marian}
DETRANSLITERATOR = "detransliterator"
MODELS = (DETRANSLITERATOR, *RANDOM)


def find_model(name: str, cache: Path) -> Path:
    """The model's directory, made first where there is none. Raises NotAvailable."""
    return find_source(name, SOURCE) if name == DETRANSLITERATOR else find_random(name, cache)


def find_random(name: str, cache: Path) -> Path:
    """Always the same weights."""
    folder = cache / "models" / f"{name}-seed-0"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        torch.manual_seed(0)
        RANDOM[name]().save_pretrained(unfinished)
        write_pieces(unfinished)
        unfinished.rename(folder)
    return folder
