"""Masked language models as SPLADE: the largest logits in every precision, and sentence-transformers' SparseEncoder."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.sparse_encoder.modules import Transformer as MlmTransformer
from tiny_engines import ROUNDING, Find, allow, capture_model, find_tolerances, list_cases
from tiny_models import CONFIGS, TinyModel, make_model, make_sequences, pack, run_module, run_padded

from models.info import ModelDirectoryError, read_info
from server.tasks import sparse
from server.wire.job import Ragged
from tests.tolerances import SPARSE_TOLERANCES, check_close

OFTEN = ["bert", "roberta", "albert", "modernbert", "eurobert"]
SEQLENS = [1, 2, 15, 16, 17, 33, 1, 48, 49, 65, 3, 73]


def make_masked(name: str, directory: Path) -> TinyModel:
    made = make_model(name, directory, transformers.AutoModelForMaskedLM)
    return TinyModel(directory, made.theirs, read_info(directory, task="sparse"))


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_masked(name, tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(CONFIGS, OFTEN))
def test_every_precision(find: Find, name: str, kernels: str, precision: str) -> None:
    captured = find(name)
    engine = captured.build(kernels, precision)
    ids, types = make_sequences(captured.model, SEQLENS)
    found = engine.run(pack(ids, types)).arrays["max_logits"].copy()
    logits, mask = run_padded(captured.model.theirs, ids, types)
    expected = logits.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    check_close(
        found, expected, tolerance=allow(find_tolerances(captured, SPARSE_TOLERANCES)[precision], kernels, precision)
    )
    if kernels not in ROUNDING:
        alone = [
            engine.run(pack([each], [kinds])).arrays["max_logits"].copy()
            for each, kinds in zip(ids, types, strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(alone), found)
    assert not engine.info.unplanned_ops


def test_a_table_of_its_own(tmp_path: Path) -> None:
    config = CONFIGS["bert"]()
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model = TinyModel(tmp_path, theirs, read_info(tmp_path, task="sparse"))
    ids, types = make_sequences(model, [5, 9])
    found = run_module(model, pack(ids, types))["max_logits"]
    logits, mask = run_padded(theirs, ids, types)
    check_close(found, logits.masked_fill(mask[..., None] == 0, -torch.inf).amax(1))


def test_weights_are_sparse_encoders(tmp_path: Path) -> None:
    """A directory that SparseEncoder has saved is read as one, and gives its weights."""
    made = make_model("bert", tmp_path / "bert", transformers.AutoModelForMaskedLM)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(96))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    theirs = SparseEncoder(
        modules=[MlmTransformer(str(tmp_path / "bert"), transformer_task="fill-mask"), SpladePooling("max")],
        device="cpu",
    )
    theirs.save_pretrained(str(tmp_path / "sparse"))
    info = read_info(tmp_path / "sparse")
    assert (info.task, info.output_dim) == ("sparse", made.info.vocab_size)
    texts = ["w1 w2 w3", "w5", "w7 w7 w9 w1 w80"]
    expected = theirs.encode(texts, convert_to_sparse_tensor=False).numpy()
    ids = [np.array(theirs.tokenizer(text)["input_ids"]) for text in texts]
    logits = run_module(TinyModel(tmp_path / "sparse", made.theirs, info), pack(ids))["max_logits"]
    reduced = sparse.reduce({"max_logits": Ragged(logits.numpy())}, sparse.SparseParams())
    found = np.zeros_like(expected)
    for row in range(len(texts)):
        found[row, reduced["indices"].row(row)] = reduced["weights"].row(row)
    check_close(found, expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pooling_strategy": "sum"}, "pooling_strategy 'sum' is not supported; only 'max' is"),
        ({"activation_function": "log1p_relu"}, "activation_function 'log1p_relu' is not supported; only 'relu' is"),
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    make_model("bert", tmp_path, transformers.AutoModelForMaskedLM)
    prefix = "sentence_transformers.sparse_encoder.models."
    modules = [
        {"type": f"{prefix}MLMTransformer", "path": ""},
        {"type": f"{prefix}SpladePooling", "path": "1_SpladePooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_SpladePooling").mkdir()
    (tmp_path / "1_SpladePooling" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelDirectoryError, match=words):
        read_info(tmp_path)
    (tmp_path / "1_SpladePooling" / "config.json").write_text("{}")
    assert read_info(tmp_path).task == "sparse"


def test_reduce_keeps_what_is_positive_and_nan() -> None:
    logits = np.array([[0.0, 1.0, -2.0], [-1.0, -1.0, -np.inf], [np.nan, 0.5, 3.0]], np.float32)
    found = sparse.reduce({"max_logits": Ragged(logits)}, sparse.SparseParams())
    assert [found["indices"].row(row).tolist() for row in range(3)] == [[1], [], [0, 1, 2]]
    np.testing.assert_allclose(found["weights"].values, np.log1p([1.0, np.nan, 0.5, 3.0]), rtol=1e-6)
