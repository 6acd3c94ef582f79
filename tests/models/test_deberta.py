"""DeBERTa against transformers: its terms of scores, buckets of distances, convolution, heads and files."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_parity import compute_rows
from tiny_engines import BEST, PRECISIONS, Captured, capture_model, check_planned
from tiny_models import DEBERTA_SIZES, TinyModel, make_model, make_sequences, pack, randomize, run_module, run_padded
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from models.config import read_config
from models.deberta import bucket_distances
from models.deberta_config import DebertaConfig
from models.info import ModelDirectoryError, read_info
from models.load import load_model
from tests.tolerances import check_close

SEQLENS = [1, 2, 9, 15, 16, 17, 33, 1, 48, 64, 65, 3, 80]
"""Around the exact buckets, tiles of queries, the distances that are told apart, and the convolution's kernel."""


def make_deberta(directory: Path, auto: Any = transformers.AutoModel, **options: Any) -> TinyModel:
    config = transformers.DebertaV2Config(**DEBERTA_SIZES | options)
    torch.manual_seed(0)
    theirs = auto.from_config(config, attn_implementation="eager").eval()
    for module in theirs.modules():
        randomize(module)
    theirs.save_pretrained(directory)
    return TinyModel(directory, theirs, read_info(directory))


def check_rows(model: TinyModel) -> None:
    ids, types = make_sequences(model, SEQLENS)
    hidden_states, mask = run_padded(model.theirs, ids, types)
    check_close(compute_rows(model, pack(ids, types)), hidden_states[mask.bool()])


@pytest.mark.parametrize(
    "options",
    [
        {"pos_att_type": "c2p", "position_buckets": 8},
        {"pos_att_type": ["p2c"], "max_relative_positions": 9, "position_biased_input": False},
        {"pos_att_type": "P2C | c2p", "share_att_key": True},
        {"pos_att_type": None, "norm_rel_ebd": "layer_norm"},
        {"relative_attention": False, "norm_rel_ebd": "layer_norm", "share_att_key": True},
        {"conv_kernel_size": 5, "position_buckets": 8, "num_hidden_layers": 1},
    ],
    ids=str,
)
def test_terms_of_scores(options: dict[str, Any], tmp_path: Path) -> None:
    check_rows(make_deberta(tmp_path, **options))


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(256, 512), (8, 40), (9, 300), (32, 18), (2, 5), (510, 512)])
def test_buckets_are_those_of_transformers(num_buckets: int, max_distance: int) -> None:
    deberta = DebertaConfig(("c2p",), True, num_buckets, max_distance, True, False, False, 0, "tanh")
    distances = torch.arange(-2000, 2001)
    theirs = make_log_bucket_position(-distances, num_buckets, max_distance).long()
    expected = (theirs + num_buckets).clamp(0, 2 * num_buckets - 1)
    assert torch.equal(bucket_distances(distances, deberta).long(), expected)


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Captured]:
    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["deberta-v2", "deberta-v2-conv"])
def test_planned(find: Callable[[str], Captured], name: str, precision: str) -> None:
    captured = find(name)
    ids, types = make_sequences(captured.model, SEQLENS)
    hidden_states, mask = run_padded(captured.model.theirs, ids, types)
    expected = (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    check_planned(captured, precision, ids, types, expected)


def test_tables_of_distances_are_computed_once(find: Callable[[str], Captured]) -> None:
    """A table for each term and layer takes the place of the one that they are made of, and of its norm."""
    captured = find("deberta-v2")
    sizes = {name: value.numel() for name, value in captured.module.named_parameters()}
    table = sizes["encoder.stack.distance.weight"]
    made_of = sum(size for name, size in sizes.items() if "distance" in name)
    num_floats = sum(sizes.values()) - made_of + 2 * captured.model.theirs.config.num_hidden_layers * table
    num_distances = 2 * captured.model.info.max_input_tokens - 1
    assert captured.build(BEST, "fp32").info.weight_bytes == 4 * (num_floats + num_distances)


@pytest.mark.parametrize("legacy", [True, False])
def test_both_heads_of_words(legacy: bool, tmp_path: Path) -> None:
    """transformers' own, and the one that the published models were trained with."""
    model = make_deberta(tmp_path, transformers.AutoModelForMaskedLM, legacy=legacy, position_buckets=8)
    sparse = TinyModel(tmp_path, model.theirs, read_info(tmp_path, task="sparse"))
    ids, types = make_sequences(sparse, SEQLENS)
    logits, mask = run_padded(model.theirs, ids, types)
    expected = logits.masked_fill(~mask.bool()[..., None], -torch.inf).amax(1)
    check_close(run_module(sparse, pack(ids, types))["max_logits"], expected)


def test_positions_that_the_file_has_and_the_model_does_not_use(tmp_path: Path) -> None:
    """As in published files."""
    model = make_deberta(tmp_path, position_biased_input=False)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["embeddings.position_embeddings.weight"] = torch.randn(80, 32)
    tensors["mask_predictions.classifier.bias"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    check_rows(model)


def test_left_over_tensors_are_still_told_of(tmp_path: Path) -> None:
    model = make_deberta(tmp_path, share_att_key=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.0.attention.self.pos_key_proj.weight"
    save_file(tensors | {name: torch.zeros(32, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelDirectoryError, match=r"left over: encoder\.stack\.layers\.0\.attention\.position_k\.weight"
    ):
        load_model(tmp_path, model.info)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_att_type": ["p2p"]}, r"pos_att_type \['p2p'\] is not supported; supported are c2p, p2c"),
        ({"position_buckets": 200}, "position_buckets is 200; it must be at least 2, and half of it less than the 79"),
        ({"attention_head_size": 16}, "attention_head_size 16 is not supported; only 8 is"),
        ({"conv_kernel_size": 2}, "conv_kernel_size 2 is not supported; only odd numbers are"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    keys = transformers.DebertaV2Config(**DEBERTA_SIZES).to_dict() | {"architectures": ["DebertaV2Model"]} | changes
    (tmp_path / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=message):
        read_config(tmp_path)
