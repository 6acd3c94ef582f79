"""Several heads on one trunk: one pass gives what each gives alone, bit for bit, in every precision."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_engines import BEST, PRECISIONS, Captured, capture_model
from tiny_models import TinyModel, make_model, make_sequences, pack, run_padded

from models.further_heads import list_own_heads, read_further_head
from models.info import ModelDirectoryError, read_info
from models.load import load_model
from server.config import ConfigError, ServerConfig
from server.processes.announcement import describe_model
from server.processes.building import build_model
from server.processes.deployment import load, save
from server.processes.resolution import resolve
from server.tasks.registry import list_outputs
from tests.tolerances import ENCODER_TOLERANCES, check_close

SEQLENS = [1, 17, 16, 33, 2, 48]
TRUNK = "bert."


def make_heads(folder: Path) -> dict[str, TinyModel]:
    """An embedder, a classifier and a tagger, which have its encoder: the tagger's file holds nothing of that."""
    trunk = make_model("bert", folder / "trunk")
    models = {"": trunk}
    for name, auto in (
        ("mood", transformers.AutoModelForSequenceClassification),
        ("places", transformers.AutoModelForTokenClassification),
    ):
        made = make_model("bert", folder / name, auto)
        getattr(made.theirs, "bert").load_state_dict(trunk.theirs.state_dict(), strict=False)  # noqa: B009
        made.theirs.save_pretrained(folder / name)
        models[name] = made
    path = folder / "places" / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if not name.startswith(TRUNK)}, path)
    return models


def join(models: dict[str, TinyModel]) -> TinyModel:
    trunk = models[""]
    further = [read_further_head(model.directory, name, "auto", trunk.info) for name, model in models.items() if name]
    return TinyModel(
        trunk.directory, trunk.theirs, trunk.info, (*list_own_heads(trunk.directory, trunk.info), *further)
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    return make_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def joined(models: dict[str, TinyModel]) -> Captured:
    return capture_model(lambda: join(models))


@pytest.fixture(scope="module")
def single(models: dict[str, TinyModel]) -> dict[str, Captured]:
    """Each with its own head alone."""
    return {name: capture_model(partial(models.__getitem__, name)) for name in ("", "mood")}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_heads_give_what_each_gives_alone(
    models: dict[str, TinyModel], joined: Captured, single: dict[str, Captured], precision: str
) -> None:
    engine = joined.build(BEST, precision)
    texts = make_sequences(joined.model, SEQLENS)
    batch = pack(*texts)
    found = {name: array.copy() for name, array in engine.run(batch).arrays.items()}
    assert list(found) == ["embeddings", "tokens.token_embeddings", "mood.logits", "places.token_logits"]
    assert [spec.name for spec in engine.info.outputs] == list(found)
    assert not engine.info.unplanned_ops
    alone = single[""].build(BEST, precision).run(batch).arrays
    np.testing.assert_array_equal(found["embeddings"], alone["embeddings"])
    alone = single["mood"].build(BEST, precision).run(batch).arrays
    np.testing.assert_array_equal(found["mood.logits"], alone["logits"])
    logits, mask = run_padded(models["places"].theirs, *texts)
    check_close(found["places.token_logits"], logits[mask == 1], tolerance=ENCODER_TOLERANCES[precision])
    rows, mask = run_padded(models[""].theirs, *texts)
    check_close(found["tokens.token_embeddings"], rows[mask == 1], tolerance=ENCODER_TOLERANCES[precision])


def test_only_what_is_wanted_is_handed_out(joined: Captured) -> None:
    engine = joined.build(BEST, "fp32")
    batch = pack(*make_sequences(joined.model, [3, 4]))
    wanted = frozenset({"mood.logits"})
    (name,) = engine.run(type(batch)(batch.arrays, batch.cu_seqlens, batch.max_seqlen, outputs=wanted)).arrays
    assert name == "mood.logits"


def test_another_trunk_is_refused(models: dict[str, TinyModel], tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = make_model("bert", tmp_path / "other", transformers.AutoModelForSequenceClassification)
    with torch.no_grad():
        other.theirs.get_parameter("bert.embeddings.LayerNorm.bias").add_(1)
    other.theirs.save_pretrained(tmp_path / "other")
    trunk = models[""]
    head = read_further_head(tmp_path / "other", "mood", "auto", trunk.info)
    with pytest.raises(ModelDirectoryError, match=r"was trained on another encoder.*Serve it as a model of its own"):
        load_model(trunk.directory, trunk.info, [head])


def test_another_vocabulary_is_refused(models: dict[str, TinyModel], tmp_path: Path) -> None:
    made = make_model("bert", tmp_path, transformers.AutoModelForSequenceClassification)
    made.theirs.resize_token_embeddings(103)
    made.theirs.save_pretrained(tmp_path)
    with pytest.raises(ModelDirectoryError, match="vocab_size is 103, and that of the trunk 101"):
        read_further_head(tmp_path, "mood", "auto", models[""].info)


def test_a_generator_is_no_head(tmp_path: Path, models: dict[str, TinyModel]) -> None:
    info = read_info(models[""].directory)
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=80, vocab_size=101)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelDirectoryError, match="a head cannot be for generate on a model for embed"):
        read_further_head(tmp_path, "chat", "auto", info)


def test_a_configuration_with_heads(models: dict[str, TinyModel], tmp_path: Path) -> None:
    """As it reaches an engine's process, and as that builds it."""
    heads = [{"name": name, "source": {"path": str(models[name].directory)}} for name in ("mood", "places")]
    model = {"name": "all", "source": {"path": str(models[""].directory)}, "heads": heads}
    config = ServerConfig.model_validate({"models": [model | {"engine": {"precision": "fp32", "threads": 1}}]})
    save(resolve(config, tmp_path))
    (deployed,) = load(tmp_path).models
    assert [head.info.head for head in deployed.heads] == ["tokens", "mood", "places"]
    engine = build_model(deployed, 0, lambda *_: None)
    described = list_outputs([deployed.info, *(head.info for head in deployed.heads)])
    assert [spec.name for spec in engine.info.outputs] == [spec.name for spec in described]
    assert [spec.dims for spec in engine.info.outputs] == [spec.dims for spec in described]
    lines = describe_model(deployed, engine.info).splitlines()
    assert (
        lines[-1]
        == "  heads      all/mood: classify, 3 labels out; all/places: token_classify, 3 labels for each token out"
    )


def test_names_of_heads(models: dict[str, TinyModel], tmp_path: Path) -> None:
    source = {"path": str(models[""].directory)}

    def resolve_heads(*names: str) -> None:
        heads = [{"name": name, "source": {"path": str(models["mood"].directory)}} for name in names]
        model = {"name": "all", "source": source, "heads": heads}
        resolve(ServerConfig.model_validate({"models": [model]}), tmp_path)

    with pytest.raises(ConfigError, match=r"heads: the name 'tokens' is taken. Choose another"):
        resolve_heads("tokens")
    with pytest.raises(ValidationError, match=r"heads: two have the name 'mood'. Give each its own name"):
        resolve_heads("mood", "mood")
    with pytest.raises(ValidationError, match=r"heads.0.name"):
        resolve_heads("a/b")
