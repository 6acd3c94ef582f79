"""Vectors of tokens in every precision, with tokens that are not attended to; and what directories may say of it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from late_dirs import DIM, make_own, make_pylate, make_stanford
from sentence_dirs import make_base, write_json
from tiny_engines import ROUNDING, Captured, Find, allow, capture_model, list_cases
from tiny_models import Ids, TinyModel, pack

from models.info import ModelDirectoryError, read_info
from models.load import load_model
from runtime.batch import Batch
from runtime.engine import Engine
from tests.tolerances import ENCODER_TOLERANCES, SAME_ENGINE, check_close

LENGTHS = [(24, 5), (24, 24), (3, 3), (17, 17), (24, 1), (26, 26), (24, 23), (1, 1)]
"""(tokens, keys) of each sequence: queries with masks, and documents."""
MAKERS = {"stanford": make_stanford, "pylate": make_pylate, "own": make_own}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    make_base(directory)
    return directory


@pytest.fixture(scope="module")
def find(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Find:
    def make(name: str) -> TinyModel:
        directory = MAKERS[name](base, tmp_path_factory.mktemp(name) / "model")
        return TinyModel(directory, transformers.BertModel.from_pretrained(base), read_info(directory))

    return cache(lambda name: capture_model(lambda: make(name)))


def draw(model: TinyModel) -> list[Ids]:
    random = np.random.default_rng(1)
    return [random.integers(5, model.info.vocab_size, length) for length, _ in LENGTHS]


def pack_keys(ids: list[Ids], keys: list[int]) -> Batch:
    batch = pack(ids)
    batch.arrays["num_keys"] = np.array(keys, np.int32)
    return batch


def run(engine: Engine, ids: list[Ids], keys: list[int]) -> list[npt.NDArray[np.float32]]:
    rows = engine.run(pack_keys(ids, keys)).arrays["token_embeddings"].copy()
    return np.split(rows, np.cumsum([len(each) for each in ids])[:-1])


@torch.no_grad()
def expect(captured: Captured, ids: list[Ids], keys: list[int]) -> npt.NDArray[np.float32]:
    """transformers' encoder, which pads and masks, and our head over its rows."""
    rows = []
    for each, num_keys in zip(ids, keys, strict=True):
        mask = (torch.arange(len(each)) < num_keys).long()[None]
        hidden_states = captured.model.theirs(torch.from_numpy(each)[None], attention_mask=mask).last_hidden_state[0]
        rows.append(captured.module.head(hidden_states)["token_embeddings"].numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(MAKERS, ["stanford"]))
def test_every_precision(find: Find, name: str, kernels: str, precision: str) -> None:
    captured = find(name)
    engine = captured.build(kernels, precision)
    ids, keys = draw(captured.model), [num_keys for _, num_keys in LENGTHS]
    together = run(engine, ids, keys)
    check_close(
        np.concatenate(together),
        expect(captured, ids, keys),
        tolerance=allow(ENCODER_TOLERANCES[precision], kernels, precision),
    )
    alone = [run(engine, [each], [num_keys])[0] for each, num_keys in zip(ids, keys, strict=True)]
    if kernels in ROUNDING:
        tolerance = SAME_ENGINE if precision == "fp32" else allow(ENCODER_TOLERANCES[precision], kernels, precision)
        check_close(np.concatenate(alone), np.concatenate(together), tolerance=tolerance)
    else:
        np.testing.assert_array_equal(np.concatenate(alone), np.concatenate(together))
    assert engine.info.precision == precision and not engine.info.unplanned_ops
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(together), axis=1), 1, rtol=1e-5)


def test_masks_that_are_attended_to_need_no_borders(base: Path, tmp_path: Path) -> None:
    directory = make_stanford(base, tmp_path / "model", attend_to_mask_tokens=True)
    assert not load_model(directory, read_info(directory)).module.has_unseen_tokens
    assert load_model(make_stanford(base, tmp_path / "plain"), read_info(tmp_path / "plain")).module.has_unseen_tokens


def test_what_directories_say(base: Path, tmp_path: Path) -> None:
    info = read_info(make_stanford(base, tmp_path / "stanford"))
    late = info.late_interaction
    assert late is not None and late.expansion is not None
    assert (info.task, info.output_dim, info.normalize, info.max_input_tokens) == ("multi_vector", DIM, True, 30)
    assert (late.max_query_tokens, late.max_document_tokens, late.expansion.token) == (24, 30, "[MASK]")
    assert info.prompts == {"query": "[unused0] ", "document": "[unused1] "} and "!" in info.skipped_tokens
    info = read_info(make_pylate(base, tmp_path / "pylate"))
    late = info.late_interaction
    assert late is not None and late.expansion is not None
    assert (late.max_query_tokens, late.max_document_tokens, late.expansion.length) == (20, 28, 20)
    assert info.skipped_tokens == (":", "a", "##b") and late.skipping_sides == ("document",)
    info = read_info(make_own(base, tmp_path / "own", similarity="meanmaxsim", query_expansion=None))
    late = info.late_interaction
    assert late is not None and late.expansion is None and late.is_mean
    assert (late.max_query_tokens, late.skipping_sides) == (42, ("query", "document"))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("3_MultiVectorMask/config.json", {"keep_only_token_ids": [3]}, "keep_only_token_ids is not supported"),
        ("3_MultiVectorMask/config.json", {"skiplist_words": "ab"}, "skiplist_words must be a list of texts"),
        ("4_Normalize/config.json", {"module_input_name": None}, "only 'token_embeddings' is"),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "only 'token_embeddings' is"),
        ("1_Dense/config.json", {"use_residual": True}, "use_residual is not supported"),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "max"}}, "strategy 'max' is not supported"),
        ("sentence_bert_config.json", {"query_expansion": {"speed": 1}}, "query_expansion must be an object with"),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "fixed", "length": 99}},
            "queries are expanded to 99 tokens; the model has 42 positions",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(
    base: Path, tmp_path: Path, file: str, content: dict[str, Any], words: str
) -> None:
    path = make_own(base, tmp_path / "model") / file
    write_json(path, json.loads(path.read_text()) | content)
    with pytest.raises(ModelDirectoryError, match=words):
        load_model(tmp_path / "model", read_info(tmp_path / "model"))


def test_other_modules_are_refused(base: Path, tmp_path: Path) -> None:
    path = make_own(base, tmp_path / "model") / "modules.json"
    modules = json.loads(path.read_text())
    modules[4]["type"] = "sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling"
    write_json(path, modules)
    with pytest.raises(ModelDirectoryError, match="HierarchicalTokenPooling' is not supported here; there may be"):
        read_info(tmp_path / "model")


def test_other_metadata_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="similarity 'l2' is not supported; only 'cosine' is"):
        read_info(make_stanford(base, tmp_path / "l2", similarity="l2"))
    directory = make_stanford(base, tmp_path / "wide", dim=64)
    with pytest.raises(ModelDirectoryError, match=f"vectors have {DIM} numbers and not 64, as it says"):
        load_model(directory, read_info(directory))
    with pytest.raises(ModelDirectoryError, match="task multi_vector needs a ColBERT"):
        read_info(base, task="multi_vector")
