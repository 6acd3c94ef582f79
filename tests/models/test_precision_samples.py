"""What the process that measures precisions judges a model on, and what it leaves behind."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from torch import nn

from models.info import ModelInfo
from runtime.precision_cache import read_choice
from runtime.precision_choice import ChosenPrecision
from server.config import ModelConfig
from server.processes import precision_process
from server.processes.deployment import DeployedModel
from server.processes.precision_process import choose, find_samples
from server.processes.sample_texts import list_sample_texts
from tests.e2e.running_server import WORDS, make_model_directory

INFO = ModelInfo("BertModel", "embed", len(WORDS), 2, 32, 8)
CHOSEN = ChosenPrecision(((4096, "int8"),), "balanced", kernels="avx2")


@pytest.fixture
def model(tmp_path: Path) -> DeployedModel:
    directory = make_model_directory(tmp_path / "model")
    settings = {"name": "m", "source": {"path": str(directory)}, "limits": {"max_batch_requests": 4}}
    return DeployedModel(0, ModelConfig.model_validate(settings), directory, INFO)


def test_sample_texts_differ_in_everything_but_their_subjects() -> None:
    texts = list_sample_texts()
    assert len(set(texts)) == len(texts) == 140
    lengths = sorted(map(len, texts))
    assert lengths[0] < 20 and lengths[-1] > 300


def test_batches_fit_whatever_the_memory_is_capped_to(model: DeployedModel) -> None:
    samples = find_samples(model)
    assert samples is not None and samples.name == "140 sample texts"
    assert sum(batch.num_seqs for batch in samples.batches) == 140
    assert all(batch.num_tokens <= 32 and batch.num_seqs <= 4 for batch in samples.batches)


def test_without_a_tokenizer_there_are_none(model: DeployedModel) -> None:
    path = model.directory / "tokenizer.json"
    Tokenizer(models.BPE()).save(str(path))  # which leaves nothing of a text
    assert find_samples(model) is None
    path.unlink()
    assert find_samples(model) is None


@pytest.mark.parametrize(
    ("kernels", "wanted", "is_kept"), [("avx2", "auto", True), ("torch", "auto", False), ("torch", "torch", True)]
)
def test_what_was_measured_without_kernels_that_were_wanted_is_not_remembered(
    model: DeployedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str, wanted: str, is_kept: bool
) -> None:
    chosen = replace(CHOSEN, kernels=kernels)
    monkeypatch.setattr(precision_process, "load_model", lambda directory, info: nn.Identity())
    monkeypatch.setattr(precision_process, "choose_for", lambda *arguments: chosen)
    engine = model.config.engine.model_copy(update={"cpu_kernels": wanted})
    model = replace(model, config=model.config.model_copy(update={"engine": engine}))
    choose(model, tmp_path / "result.json", tmp_path / "cache.json")
    assert read_choice(tmp_path / "result.json") == chosen
    assert (read_choice(tmp_path / "cache.json") == chosen) == is_kept


def test_a_cache_that_cannot_be_written_is_no_error(
    model: DeployedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision_process, "load_model", lambda directory, info: nn.Identity())
    monkeypatch.setattr(precision_process, "choose_for", lambda *arguments: CHOSEN)
    (tmp_path / "full").write_text("")
    choose(model, tmp_path / "result.json", tmp_path / "full" / "cache.json")
    assert read_choice(tmp_path / "result.json") == CHOSEN
    assert "what was chosen is not remembered" in caplog.text
