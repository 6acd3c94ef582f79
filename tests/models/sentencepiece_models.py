"""Tiny SentencePiece models, trained on three sentences as those of transformers' tokenizer classes were."""

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

CORPUS = (
    "Clara Schumann lived in Leipzig and in Frankfurt, where she taught the piano for fourteen years.",
    "Ihr Vater, Friedrich Wieck, war Klavierlehrer; Robert wohnte in Zwickau und in Düsseldorf.",
    "The U.N. met in New York City on the 3rd of May; nobody from Micro-soft's office came.",
) * 4
SENTINELS_FIRST = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
BYTES = {
    "model_type": "bpe",
    "vocab_size": 420,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
BRACKETS = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
GEMMA_ORDER = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
ALBERT_ORDER = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}

OPTIONS: dict[str, dict[str, Any]] = {
    "AlbertTokenizer": ALBERT_ORDER | {"user_defined_symbols": "(,),.,-"},
    "DebertaV2Tokenizer": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, **BRACKETS},
    "GemmaTokenizer": BYTES
    | GEMMA_ORDER
    | {
        "add_dummy_prefix": False,
        "user_defined_symbols": "<start_of_turn>,\n,\n\n,▁▁,▁▁▁,<b>",
    },
    "LlamaTokenizer": BYTES,
    "NllbTokenizer": {"model_type": "bpe", "vocab_size": 180},
    "PegasusTokenizer": SENTINELS_FIRST,
    "T5Tokenizer": SENTINELS_FIRST,
}
"""The trainer's, where they are not its defaults."""
FILES = {
    "AlbertTokenizer": "spiece.model",
    "DebertaV2Tokenizer": "spm.model",
    "GemmaTokenizer": "tokenizer.model",
    "LlamaTokenizer": "tokenizer.model",
    "MarianTokenizer": "source.spm",
    "PegasusTokenizer": "spiece.model",
    "T5Tokenizer": "spiece.model",
}
"""Others are called sentencepiece.bpe.model."""


def train(name: str, **options: Any) -> bytes:
    """The file of a tokenizer class."""
    given = OPTIONS.get(name, {}) | options
    return train_with(tuple(sorted(given.items())))


@cache
def train_with(options: tuple[tuple[str, Any], ...]) -> bytes:
    file = io.BytesIO()
    settings: Mapping[str, Any] = {"vocab_size": 130, "hard_vocab_limit": False, "minloglevel": 2, **dict(options)}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=file, **settings)
    return file.getvalue()


def load(raw: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=raw)


def save(name: str, directory: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """The directory has the class's file then; what comes back reads it."""
    raw = train(name, **options)
    (directory / FILES.get(name, "sentencepiece.bpe.model")).write_bytes(raw)
    return load(raw)
