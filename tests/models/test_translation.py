"""What directories say of languages."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.keys import ModelDirectoryError
from models.translation import TranslationInfo, read_translation


def read(folder: Path, tokenizer: dict[str, Any], **config: Any) -> TranslationInfo:
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps(config))
    return read_translation(folder)


@pytest.mark.parametrize(
    ("name", "style", "language"),
    [
        ("M2M100Tokenizer", "prefix", "en"),
        ("MBart50TokenizerFast", "prefix", "en_XX"),
        ("MBartTokenizer", "suffix", "en_XX"),
        ("NllbTokenizerFast", "prefix", "eng_Latn"),
        ("MarianTokenizer", "target_prefix", ""),
        ("PegasusTokenizer", "none", ""),
        ("T5TokenizerFast", "none", ""),
        ("PreTrainedTokenizerFast", "none", ""),
    ],
)
def test_where_languages_stand(tmp_path: Path, name: str, style: str, language: str) -> None:
    """By the tokenizer's class, and which one is read where nothing is said, as in transformers."""
    assert read(tmp_path, {"tokenizer_class": name}) == TranslationInfo(style, language)
    given = read(tmp_path, {"tokenizer_class": name, "src_lang": "fr", "target_lang": "de"})
    assert (given.source_language, given.target_language) == ("fr", "de")


def test_tasks_told_in_words(tmp_path: Path) -> None:
    tasks = {"translation_en_to_de": {"prefix": "to German: "}, "summarization": {"num_beams": 4}}
    found = read(tmp_path, {"tokenizer_class": "T5Tokenizer"}, task_specific_params=tasks)
    assert (found.style, found.task_names) == ("words", tuple(tasks))
    assert found.pair_prefixes == {("en", "de"): "to German: "}


@pytest.mark.parametrize(
    ("tokenizer", "config", "message"),
    [
        ({"tokenizer_class": "NllbTokenizer", "legacy_behaviour": True}, {}, "legacy_behaviour"),
        ({"src_lang": 3}, {}, "src_lang is 3"),
        ({}, {"task_specific_params": [1]}, "task_specific_params"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, tokenizer: dict[str, Any], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        read(tmp_path, tokenizer, **config)
