"""Directories with vocab.txt, or with vocab.json and merges.txt, and no tokenizer.json: the tokens of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, trainers

from models.keys import ModelDirectoryError
from models.tokenizer_files import has_tokenizer, read_tokenizer, read_tokenizer_text

CORPUS = ["Clara Schumann lived in Leipzig, and taught for 14 years.", "Ihr Vater wohnte in Zwickau; it's a city."] * 4
PARTS = [
    "Clara",
    "Leipzig",
    " ",
    "  ",
    "\n",
    "14",
    "it's",
    "ü",
    "u\u0308",
    "é",
    ",",
    "日本",
    "İ",
    "Vater",
    "wohn",
    "ﬁ",
    "😀",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=10).map("".join)

WORDS = {"BertTokenizer": "bert", "MPNetTokenizer": "mpnet"}
BYTES = {"GPT2Tokenizer": "gpt2", "Qwen2Tokenizer": "qwen2", "RobertaTokenizer": "roberta"}


def save_words(name: str, directory: Path) -> None:
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"] if name == "MPNetTokenizer" else []
    special = special or ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lower = [text.lower() for text in CORPUS]
    raw.train_from_iterator(
        CORPUS + lower, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    words = sorted(raw.get_vocab(), key=lambda word: raw.token_to_id(word))
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def save_bytes(name: str, directory: Path) -> None:
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"] if name == "RobertaTokenizer" else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.model.save(str(directory))
    merges = directory / "merges.txt"
    text = merges.read_text(encoding="utf-8")
    merges.write_text(text if text.startswith("#version") else f"#version: 0.2\n{text}", encoding="utf-8")


def save(name: str, directory: Path, **keys: Any) -> None:
    (save_words if name in WORDS else save_bytes)(name, directory)
    (directory / "config.json").write_text(json.dumps({"model_type": (WORDS | BYTES)[name]}))
    (directory / "tokenizer_config.json").write_text(json.dumps(keys))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("BertTokenizer", {}),
        ("BertTokenizer", {"do_lower_case": False, "tokenize_chinese_chars": False}),
        ("BertTokenizer", {"strip_accents": False}),
        ("MPNetTokenizer", {}),
        ("GPT2Tokenizer", {}),
        ("Qwen2Tokenizer", {}),
        ("RobertaTokenizer", {}),
        ("RobertaTokenizer", {"add_prefix_space": True}),
    ],
)
def test_tokens_are_those_of_transformers(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    save(name, tmp_path, **keys)
    theirs = getattr(transformers, name).from_pretrained(tmp_path)
    ours = RawTokenizer.from_str(read_tokenizer_text(tmp_path))

    @settings(max_examples=40, deadline=None)
    @given(text=TEXTS, second=st.none() | TEXTS.filter(bool))
    def check(text: str, second: str | None) -> None:
        expected = theirs(text, second, return_offsets_mapping=True, return_token_type_ids=True)
        found = ours.encode(text, second)
        assert (found.ids, found.type_ids) == (expected["input_ids"], expected["token_type_ids"])
        assert found.offsets == expected["offset_mapping"]
        assert ours.decode(found.ids) == theirs.decode(found.ids, skip_special_tokens=True)

    check()


def test_the_mask_takes_the_blank_before_it(tmp_path: Path) -> None:
    save("RobertaTokenizer", tmp_path)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path, mask_token=None)
    found = RawTokenizer.from_str(read_tokenizer_text(tmp_path)).encode("in <mask>", add_special_tokens=False)
    assert found.tokens[-1] == " <mask>"
    assert found.ids[:-1] == theirs("in", add_special_tokens=False)["input_ids"]


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    save("GPT2Tokenizer", tmp_path)
    with (tmp_path / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("a b c\n")
    with pytest.raises(ModelDirectoryError, match=r"merges\.txt: each line must have two"):
        read_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    assert not has_tokenizer(tmp_path)
    with pytest.raises(ModelDirectoryError, match=r"nor, of a GPT2Tokenizer, vocab\.json with merges\.txt"):
        read_tokenizer(tmp_path)
