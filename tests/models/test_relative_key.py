"""BERT and its like with distances in place of positions, as transformers 4 computed them: 5 has no class of it."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_parity import compute_rows
from tiny_engines import PRECISIONS, Captured, capture_model, check_planned
from tiny_models import CONFIGS, Ids, TinyModel, make_model, make_sequences, pack
from torch import Tensor

from models.config import read_config
from models.info import ModelDirectoryError
from tests.tolerances import check_close

SEQLENS = [1, 2, 15, 16, 17, 33, 1, 48, 64, 3, 73]
KINDS = ["relative_key", "relative_key_query"]


def make_relative(name: str, kind: str, directory: Path) -> TinyModel:
    """A directory of transformers 5 with the key and the tables that version 4 wrote."""
    model = make_model(name, directory)
    config = model.theirs.config
    path = directory / "config.json"
    keys = json.loads(path.read_text(encoding="utf-8")) | {"position_embedding_type": kind}
    path.write_text(json.dumps(keys), encoding="utf-8")
    torch.manual_seed(1)
    tables = {
        f"encoder.layer.{layer}.attention.self.distance_embedding.weight": torch.randn(
            2 * config.max_position_embeddings - 1, config.hidden_size // config.num_attention_heads
        )
        for layer in range(config.num_hidden_layers)
    }
    save_file(load_file(directory / "model.safetensors") | tables, directory / "model.safetensors")
    return model


@torch.no_grad()
def compute_expected(model: TinyModel, kind: str, ids: Ids, types: Ids) -> Tensor:
    """Rows of one text: [seqlen, width]. transformers' module but for its attention, and without its positions."""
    theirs, tensors = model.theirs, load_file(model.directory / "model.safetensors")
    tables = theirs.embeddings
    rows = tables.word_embeddings(torch.from_numpy(ids)) + tables.token_type_embeddings(torch.from_numpy(types))
    x = tables.LayerNorm(rows)
    num_heads, places = theirs.config.num_attention_heads, torch.arange(len(ids))
    distances = places[:, None] - places + theirs.config.max_position_embeddings - 1
    for index, layer in enumerate(theirs.encoder.layer):
        attention = layer.attention.self
        q, k, v = (part(x).view(len(ids), num_heads, -1) for part in (attention.query, attention.key, attention.value))
        table = tensors[f"encoder.layer.{index}.attention.self.distance_embedding.weight"][distances]
        scores = torch.einsum("lhd,rhd->hlr", q, k) + torch.einsum("lhd,lrd->hlr", q, table)
        if kind == "relative_key_query":
            scores += torch.einsum("rhd,lrd->hlr", k, table)
        weights = (scores / math.sqrt(q.shape[-1])).softmax(-1)
        x = layer.attention.output(torch.einsum("hlr,rhd->lhd", weights, v).flatten(1), x)
        x = layer.output(layer.intermediate(x), x)
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "roberta", "electra-wide"])
def test_rows_are_those_of_the_formula(name: str, kind: str, tmp_path: Path) -> None:
    model = make_relative(name, kind, tmp_path)
    ids, types = make_sequences(model, SEQLENS)
    expected = [compute_expected(model, kind, *text) for text in zip(ids, types, strict=True)]
    check_close(compute_rows(model, pack(ids, types)), torch.cat(expected))


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Captured]:
    return cache(lambda kind: capture_model(lambda: make_relative("bert", kind, tmp_path_factory.mktemp(kind))))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["relative_key_query", pytest.param("relative_key", marks=pytest.mark.slow)])
def test_planned(find: Callable[[str], Captured], kind: str, precision: str) -> None:
    model = find(kind).model
    ids, types = make_sequences(model, SEQLENS)
    rows = [compute_expected(model, kind, *text).mean(0) for text in zip(ids, types, strict=True)]
    check_planned(find(kind), precision, ids, types, torch.stack(rows))


@pytest.mark.parametrize("name", ["bert", "albert", "mpnet"])
@pytest.mark.parametrize("kind", ["rope", "relative_key"])
def test_refusals(name: str, kind: str, tmp_path: Path) -> None:
    """Of other kinds, and of these in families that have no tables for them here."""
    keys: dict[str, Any] = CONFIGS[name]().to_dict() | {"position_embedding_type": kind}
    keys["architectures"] = [type(CONFIGS[name]()).__name__.replace("Config", "Model")]
    (tmp_path / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    if (name, kind) == ("bert", "relative_key"):
        assert read_config(tmp_path).positions == kind
        return
    with pytest.raises(ModelDirectoryError, match=f"position_embedding_type '{kind}' is not supported"):
        read_config(tmp_path)
