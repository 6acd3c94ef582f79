"""ConvBERT against transformers, each text by itself there: its convolutions reach into padding."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_parity import compute_rows
from tiny_engines import PRECISIONS, Captured, capture_model, check_planned
from tiny_models import SOLO_CONFIGS, Ids, TinyModel, make_model, make_sequences, pack, run_module, run_padded
from torch import Tensor

from models.config import read_config
from models.info import ModelDirectoryError, read_info
from tests.tolerances import check_close

SEQLENS = [1, 2, 3, 4, 5, 9, 15, 16, 17, 33, 1, 48, 80]
"""Below the kernels' sizes, around tiles, and the longest."""


def run_alone(model: TinyModel, ids: Sequence[Ids], types: Sequence[Ids]) -> list[Tensor]:
    """Of each text what transformers gives without a batch: [seqlen, width] or [num_labels]."""
    return [run_padded(model.theirs, [text], [kinds])[0][0] for text, kinds in zip(ids, types, strict=True)]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Captured]:
    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize("name", SOLO_CONFIGS)
def test_rows_match_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name, tmp_path)
    ids, types = make_sequences(model, SEQLENS)
    check_close(compute_rows(model, pack(ids, types)), torch.cat(run_alone(model, ids, types)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["convbert-groups", pytest.param("convbert", marks=pytest.mark.slow)])
def test_planned(find: Callable[[str], Captured], name: str, precision: str) -> None:
    model = find(name).model
    ids, types = make_sequences(model, SEQLENS)
    expected = torch.stack([rows.mean(0) for rows in run_alone(model, ids, types)])
    check_planned(find(name), precision, ids, types, expected)


@pytest.mark.parametrize("name", SOLO_CONFIGS)
def test_logits_match_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name, tmp_path, transformers.AutoModelForSequenceClassification)
    ids, types = make_sequences(model, SEQLENS)
    logits = run_module(model, pack(ids, types))["logits"]
    check_close(logits, torch.stack(run_alone(model, ids, types)))


def test_words_match_transformers(tmp_path: Path) -> None:
    made = make_model("convbert", tmp_path, transformers.AutoModelForMaskedLM)
    model = TinyModel(tmp_path, made.theirs, read_info(tmp_path, task="sparse"))
    ids, types = make_sequences(model, SEQLENS)
    found = run_module(model, pack(ids, types))["max_logits"]
    check_close(found, torch.stack([logits.amax(0) for logits in run_alone(model, ids, types)]))


READ: dict[str, Any] = {
    "embedding_size": 8,
    "head_ratio": 4,
    "conv_kernel_size": 3,
    "num_groups": 2,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-3,
    "type_vocab_size": 3,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({key: value}, "") for key, value in READ.items()),
        ({"conv_kernel_size": 4}, "conv_kernel_size 4 is not supported; only odd numbers are"),
        ({"num_groups": 3}, "hidden_size 32 is no multiple of num_groups 3"),
        ({"hidden_size": 36, "num_attention_heads": 12, "head_ratio": 1}, "is no multiple of twice the 12 heads"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
    ],
    ids=str,
)
def test_keys_are_read_or_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    keys = SOLO_CONFIGS["convbert"]().to_dict() | {"architectures": ["ConvBertModel"]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(keys), encoding="utf-8")
    expected = read_config(tmp_path)
    path.write_text(json.dumps(keys | changes), encoding="utf-8")
    if message:
        with pytest.raises(ModelDirectoryError, match=message):
            read_config(tmp_path)
    else:
        assert read_config(tmp_path) != expected


def test_every_key_is_accounted_for() -> None:
    """Sizes that every family has, what is of training or the tokenizer alone, and those above."""
    sizes = {f"num_{what}" for what in ("hidden_layers", "attention_heads")} | {"hidden_size", "intermediate_size"}
    usual = sizes | {"vocab_size", "max_position_embeddings", "pad_token_id", "is_decoder", "add_cross_attention"}
    without_meaning = {"attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "initializer_range"}
    without_meaning |= {"bos_token_id", "eos_token_id", "use_cache", "tie_word_embeddings", "model_type"}
    rest = set(transformers.PreTrainedConfig().to_dict())
    assert not transformers.ConvBertConfig().to_dict().keys() - READ.keys() - usual - without_meaning - rest
