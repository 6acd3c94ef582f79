"""What the process that compiles judges a model on, and what it leaves behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_model
from tokenizers import Tokenizer, models

from models.info import ModelInfo
from runtime.backends.cpu import library
from runtime.compile_cache import CompileCache
from runtime.compiled import load_compiled
from runtime.engines.transfer import make_batch
from server.config import ModelConfig, ServerConfig
from server.processes.building import build_model
from server.processes.compile_process import compile_ahead, find_samples
from server.processes.deployment import DeployedModel, Deployment
from server.processes.opening import Damaged, find_costs, load_costs, open_model
from server.processes.sample_texts import list_sample_texts
from tests.e2e.running_server import WORDS, make_model_directory

INFO = ModelInfo("BertModel", "embed", len(WORDS), 2, 32, 8)


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


@pytest.fixture
def tiny(tmp_path: Path) -> DeployedModel:
    """With weights, and without a tokenizer."""
    made = make_model("bert", tmp_path / "tiny")
    config = ModelConfig.model_validate({"name": "m", "source": {"path": str(made.directory)}})
    return DeployedModel(0, config, made.directory, made.info)


@pytest.fixture
def deployment(tiny: DeployedModel, tmp_path: Path) -> Deployment:
    (tmp_path / "run").mkdir()
    model = tiny
    return Deployment(ServerConfig(models=(model.config,)), (model,), tmp_path / "run", num_cores=1)


def configure(model: DeployedModel, **engine: object) -> DeployedModel:
    config = model.config.engine.model_copy(update=engine)
    return replace(model, config=model.config.model_copy(update={"engine": config}))


def test_engines_open_what_it_leaves(tiny: DeployedModel, deployment: Deployment, tmp_path: Path) -> None:
    model, cache = configure(tiny, precision="int8"), CompileCache(tmp_path / "c" / "m.pt", tmp_path / "c" / "m.json")
    compile_ahead(deployment, model, cache)
    model = replace(model, compiled=cache.model)
    engine, built = (make(model, 0, lambda *_: None) for make in (open_model, build_model))
    batch = make_batch([7, 3], token_id=5)
    for name, rows in engine.run(batch).arrays.items():
        np.testing.assert_array_equal(rows, built.run(batch).arrays[name])
    costs = load_costs(cache.model)
    assert costs is not None and costs.per_token_s > 0
    assert find_costs(model, engine, model.compiled, lambda *_: None) == costs


def test_what_is_damaged_is_dropped_and_built(tiny: DeployedModel, deployment: Deployment, tmp_path: Path) -> None:
    model, cache = configure(tiny, precision="fp32"), CompileCache(tmp_path / "m.pt", tmp_path / "m.json")
    compile_ahead(deployment, model, cache)
    cache.model.write_bytes(cache.model.read_bytes()[:-100])
    model = replace(model, compiled=cache.model)
    with pytest.raises(Damaged, match=r"m\.pt cannot be read"):
        open_model(model, 0, lambda *_: None)
    assert not model.is_openable
    assert build_model(model, 0, lambda *_: None).info.precision == "fp32"


@pytest.mark.parametrize(("wanted", "is_kept"), [("auto", False), ("torch", True)])
def test_what_was_made_without_kernels_that_were_wanted_is_not_kept(
    tiny: DeployedModel,
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    is_kept: bool,
) -> None:
    monkeypatch.setattr(library, "list_isas", list)
    cache = CompileCache(tmp_path / "m.pt", tmp_path / "m.json")
    compile_ahead(deployment, configure(tiny, cpu_kernels=wanted, precision="fp32"), cache)
    assert cache.model.exists() == is_kept
    assert deployment.compiled_path(tiny).exists() != is_kept


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny: DeployedModel, deployment: Deployment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "full").write_text("")
    cache = CompileCache(tmp_path / "full" / "m.pt", tmp_path / "full" / "m.json")
    compile_ahead(deployment, configure(tiny, precision="fp32"), cache)
    assert load_compiled(deployment.compiled_path(tiny)) is not None
    assert "the compiled model is not kept for later starts" in caplog.text
