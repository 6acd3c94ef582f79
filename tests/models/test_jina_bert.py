"""JinaBERT v2 against its published formula, written out here: transformers has no class of it."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from own_checkpoints import Tensors, draw_tensors, draw_texts, save_model
from test_parity import compute_rows
from tiny_engines import PRECISIONS, Captured, capture_model, check_planned
from tiny_models import Ids, TinyModel, pack
from torch import Tensor
from torch.nn import functional

from models.config import read_config
from models.info import ModelDirectoryError, read_info
from models.jina_bert import find_slopes
from models.load import load_model
from tests.tolerances import check_close

SEQLENS = [1, 2, 15, 16, 17, 33, 1, 48, 64, 3, 100]
WIDTH, NUM_HEADS, HIDDEN, VOCAB = 36, 3, 56, 101
KEYS: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["JinaBertForMaskedLM"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": NUM_HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 128,
    "position_embedding_type": "alibi",
    "emb_pooler": "mean",
    "hidden_act": "gelu",
}
CODE = "jinaai/jina-bert-{}--modeling_bert.JinaBertModel"
DIALECTS: dict[str, dict[str, Any]] = {
    "base": {"feed_forward_type": "geglu", "auto_map": {"AutoModel": CODE.format("implementation")}},
    "qk_norm": {"feed_forward_type": "reglu", "auto_map": {"AutoModel": CODE.format("v2-qk-post-norm")}},
}


def list_shapes(dialect: str) -> dict[str, tuple[int, ...]]:
    """By the names of published files."""

    def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        parts = ("self.query", "self.key", "self.value", "output.dense")
        shapes |= {
            key: shape for part in parts for key, shape in linear(f"{layer}attention.{part}", WIDTH, WIDTH).items()
        }
        gate, down = ("gated_layers", "wo") if dialect == "base" else ("up_gated_layer", "down_layer")
        shapes |= {f"{layer}mlp.{gate}.weight": (2 * HIDDEN, WIDTH)} | linear(f"{layer}mlp.{down}", WIDTH, HIDDEN)
        own = ["mlp.layernorm"] if dialect == "base" else ["layer_norm_1", "layer_norm_2"]
        own += [] if dialect == "base" else ["attention.self.layer_norm_q", "attention.self.layer_norm_k"]
        norms += [layer + norm for norm in ("attention.output.LayerNorm", *own)]
    return shapes | {f"{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}


def compute_expected(tensors: Tensors, dialect: str, ids: Ids, types: Ids) -> Tensor:
    """Rows of one text: [seqlen, width]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-12)

    def attend(layer: str, x: Tensor) -> Tensor:
        q, k, v = (linear(f"{layer}attention.self.{part}", x) for part in ("query", "key", "value"))
        if dialect == "qk_norm":
            q, k = (norm(f"{layer}attention.self.layer_norm_{n}", part) for n, part in (("q", q), ("k", k)))
        q, k, v = (part.view(-1, NUM_HEADS, WIDTH // NUM_HEADS).transpose(0, 1) for part in (q, k, v))
        places = torch.arange(len(x))
        falls = torch.tensor([2**-4, 2**-8, 2**-2])[:, None, None] * (places - places[:, None]).abs()
        weights = (q @ k.transpose(1, 2) / math.sqrt(WIDTH // NUM_HEADS) - falls).softmax(-1)
        rows = (weights @ v).transpose(0, 1).flatten(1)
        return norm(f"{layer}attention.output.LayerNorm", linear(f"{layer}attention.output.dense", rows) + x)

    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][types]
    x = norm("embeddings.LayerNorm", x)
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        attended = attend(layer, x)
        if dialect == "base":
            first, second = linear(f"{layer}mlp.gated_layers", attended).chunk(2, -1)
            x = norm(f"{layer}mlp.layernorm", linear(f"{layer}mlp.wo", functional.gelu(first) * second) + attended)
        else:
            attended = norm(f"{layer}layer_norm_1", x + attended)
            first, second = linear(f"{layer}mlp.up_gated_layer", attended).chunk(2, -1)
            x = norm(f"{layer}layer_norm_2", attended + linear(f"{layer}mlp.down_layer", first * second.relu()))
    return x


def make_jina(directory: Path, dialect: str, prefix: str = "") -> tuple[TinyModel, Tensors]:
    tensors = draw_tensors(list_shapes(dialect))
    saved = {prefix + name: value for name, value in tensors.items()}
    return save_model(directory, KEYS | DIALECTS[dialect], saved), tensors


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Captured]:
    return cache(lambda name: capture_model(lambda: make_jina(tmp_path_factory.mktemp(name), name)[0]))


@pytest.mark.parametrize(("dialect", "prefix"), [("base", ""), ("base", "bert."), ("qk_norm", "bert.")])
def test_rows_are_those_of_the_formula(dialect: str, prefix: str, tmp_path: Path) -> None:
    model, tensors = make_jina(tmp_path, dialect, prefix)
    ids, types = draw_texts(SEQLENS, VOCAB)
    expected = [compute_expected(tensors, dialect, *text) for text in zip(ids, types, strict=True)]
    check_close(compute_rows(model, pack(ids, types)), torch.cat(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dialect", ["qk_norm", pytest.param("base", marks=pytest.mark.slow)])
def test_planned(find: Callable[[str], Captured], dialect: str, precision: str) -> None:
    ids, types = draw_texts(SEQLENS, VOCAB)
    tensors = draw_tensors(list_shapes(dialect))
    rows = [compute_expected(tensors, dialect, *text).mean(0) for text in zip(ids, types, strict=True)]
    check_planned(find(dialect), precision, ids, types, torch.stack(rows))


@pytest.mark.parametrize("num_heads", [1, 4, 6, 8, 12, 16])
def test_slopes(num_heads: int) -> None:
    """Those of the paper for a power of two; the twelve of the published models end as its own code has it."""
    slopes = find_slopes(num_heads)
    assert len(slopes) == num_heads
    power = 1 << (num_heads.bit_length() - 1)
    assert slopes[:power] == [2 ** (-8 * (head + 1) / power) for head in range(power)]
    if num_heads == 12:
        assert slopes[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


def test_more_heads_classify_and_guess_words(tmp_path: Path) -> None:
    """They are BERT's."""
    keys = KEYS | DIALECTS["base"] | {"architectures": ["JinaBertForSequenceClassification"], "num_labels": 1}
    tensors = draw_tensors(list_shapes("base"))
    head = {"pooler.dense.weight": (WIDTH, WIDTH), "pooler.dense.bias": (WIDTH,)}
    head |= {"classifier.weight": (1, WIDTH), "classifier.bias": (1,)}
    model = save_model(tmp_path, keys, {f"bert.{name}": value for name, value in tensors.items()} | draw_tensors(head))
    module = load_model(tmp_path, read_info(tmp_path)).fill()
    assert module.get_submodule("head").get_parameter("dense.weight").shape == (WIDTH, WIDTH)
    assert model.info.task == "classify"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"feed_forward_type": "original"},
            "feed_forward_type 'original' is not supported; supported are geglu, reglu",
        ),
        ({"emb_pooler": "cls"}, "emb_pooler 'cls' is not supported; only 'mean' is"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"position_embedding_type": "absolute"}, "contradicts model_type|brings its own code"),
        ({"hidden_size": 35}, "hidden_size 35 is no multiple of num_attention_heads 3"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(KEYS | DIALECTS["base"] | changes), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=message):
        read_config(tmp_path)


def test_the_other_code_has_other_tensors(tmp_path: Path) -> None:
    """Which of the two it is goes by `auto_map`."""
    model, _ = make_jina(tmp_path, "base")
    (tmp_path / "config.json").write_text(json.dumps(KEYS | DIALECTS["qk_norm"]), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=r"missing: encoder\.layers\.0\.attention\.k_norm"):
        load_model(tmp_path, model.info)
