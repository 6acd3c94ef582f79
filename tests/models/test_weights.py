"""Checkpoint files: every tensor is used or known to be of no use, or loading fails naming it."""

import json
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, make_model, randomize
from torch import Tensor

from models.bert import FAMILY as BERT
from models.heads import TextModel
from models.info import ModelDirectoryError, read_info
from models.load import load_model
from models.weight_files import count_numbers
from models.weights import open_checkpoint, rename_tensors

Edit = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A classifier, so that names have a prefix."""
    make_model("bert", tmp_path, transformers.AutoModelForSequenceClassification)
    return tmp_path


def load(directory: Path, **options: str) -> TextModel:
    module = load_model(directory, read_info(directory, **options)).fill()
    assert isinstance(module, TextModel)
    return module


def edit(directory: Path, change: Edit) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def to_pickle(directory: Path, content: object = None) -> None:
    """Replace model.safetensors by pytorch_model.bin with the same tensors, or with `content`."""
    file = directory / "model.safetensors"
    torch.save(load_file(file) if content is None else content, directory / "pytorch_model.bin")
    file.unlink()


def check_same(ours: TextModel, others: TextModel) -> None:
    expected = dict(others.named_parameters())
    assert dict(ours.named_parameters()).keys() == expected.keys()
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)


WORD = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"

FAULTS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda t: t.pop(QUERY), r"missing: encoder\.stack\.layers\.1\.attention\.q\.weight$"),
    "left over": (lambda t: t.update({"bert.adapter.weight": torch.ones(2)}), r"left over: bert\.adapter\.weight$"),
    "misshapen": (
        lambda t: t.update({WORD: torch.ones(100, 32)}),
        r"misshapen: encoder\.embeddings\.word\.weight \[100, 32\] instead of \[101, 32\]$",
    ),
    "quantised": (
        lambda t: t.update({QUERY: t[QUERY].to(torch.int8)}),
        r"mistyped: encoder\.stack\.layers\.1\.attention\.q\.weight torch\.int8$",
    ),
    "twice": (
        lambda t: t.update({WORD.removeprefix("bert."): t[WORD].clone()}),
        r"left over: .*word_embeddings\.weight$",
    ),
    "several": (
        lambda t: (t.pop("classifier.bias"), t.update({"classifier.scale": torch.ones(2)})),
        r"missing: head\.output\.bias; left over: classifier\.scale$",
    ),
    "headless": (
        lambda t: [t.pop(name) for name in list(t) if "pooler" in name],
        r"missing: head\.dense\.bias, head\.dense\.weight$",
    ),
    "all": (lambda t: [t.pop(name) for name in list(t) if "layer" in name], r"missing: (\S+, ){7}\S+ and 24 more$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(directory: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    edit(directory, change)
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        load(directory)
    assert str(caught.value).startswith(f"{directory}: the weights do not fit the architecture; ")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_name(directory: Path, number: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY][3, 5] = number

    edit(directory, spoil)
    with pytest.raises(ModelDirectoryError, match=r"not finite: encoder\.stack\.layers\.1\.attention\.q\.weight$"):
        load(directory)


def test_old_names_and_buffers(directory: Path) -> None:
    """TensorFlow's names of norms, no prefix, position ids, and a language model's head: as published for BERT."""
    expected = load(directory)

    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            value = tensors.pop(name)
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[name.removeprefix("bert.")] = value
        tensors["embeddings.position_ids"] = torch.arange(80)[None]
        tensors["cls.predictions.transform.LayerNorm.gamma"] = torch.ones(32)
        tensors["cls.seq_relationship.bias"] = torch.ones(2)

    edit(directory, age)
    check_same(load(directory), expected)


def test_classifier_can_embed(directory: Path) -> None:
    """Its head is left out; anything else is still left over."""
    check_same(load(directory, task="embed"), load(directory, task="embed"))
    edit(directory, lambda tensors: tensors.update({"classifier.scale": torch.ones(2)}))
    with pytest.raises(ModelDirectoryError, match=r"left over: classifier\.scale$"):
        load(directory, task="embed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_fp32(directory: Path, dtype: torch.dtype) -> None:
    expected = load(directory)
    edit(directory, lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    for name, parameter in load(directory).named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, expected.get_parameter(name).to(dtype).float(), rtol=0, atol=0)


def test_pickle(directory: Path) -> None:
    expected = load(directory)
    to_pickle(directory)
    check_same(load(directory), expected)


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_pickle_that_calls_a_function_is_refused(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    to_pickle(directory, {WORD: Payload(target)})
    with pytest.raises(ModelDirectoryError, match=r"pytorch_model\.bin: cannot be read: Weights only load failed"):
        load(directory)
    assert not target.exists()
    pickle.loads(pickletools.optimize(pickle.dumps(Payload(target))))
    assert target.exists(), "The payload does nothing, so this test shows nothing. This is a bug."


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {"state_dict": {WORD: torch.ones(1)}}])
def test_pickle_of_something_else(directory: Path, content: object) -> None:
    to_pickle(directory, content)
    with pytest.raises(ModelDirectoryError, match=r"pytorch_model\.bin: must hold a dictionary of tensors"):
        load(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 1000])
def test_truncated_file(directory: Path, name: str, kept: int) -> None:
    if name == "pytorch_model.bin":
        to_pickle(directory)
    (directory / name).write_bytes((directory / name).read_bytes()[:kept])
    with pytest.raises(ModelDirectoryError, match=rf"{re.escape(name)}: cannot be read: \S"):
        load(directory)


@pytest.mark.parametrize("read", [load, count_numbers])
def test_file_of_somebody_else(
    directory: Path, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers writes weights for one user, a container is another. safetensors says that there is no such file."""

    open_path = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix != ".safetensors":
            return open_path(path, *arguments, **options)
        raise PermissionError(13, "Permission denied", str(path))  # What root, who may be testing, is never told.

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(ModelDirectoryError, match=r"model\.safetensors: cannot be read: .*Permission denied"):
            read(directory)


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(
        ModelDirectoryError, match=r"no weights; expected one of model\.safetensors, pytorch_model\.bin"
    ):
        load(directory)


def shard(directory: Path, suffix: str) -> Path:
    """Split the checkpoint over two files and an index. Returns the index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"part-{number}-of-2{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(
            {name: tensors[name] for name in part}, directory / file
        )
        weight_map |= dict.fromkeys(part, file)
    index = directory / f"{'model' if suffix == '.safetensors' else 'pytorch_model'}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(directory: Path, suffix: str) -> None:
    expected = load(directory)
    shard(directory, suffix)
    check_same(load(directory), expected)


def test_shards_of_transformers(tmp_path: Path) -> None:
    model = make_model("bert", tmp_path)
    expected = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    check_same(load(tmp_path), expected)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "part-9-of-2.safetensors"}, r"part-9-of-2\.safetensors: cannot be read"),
        ({"a": "../part-1-of-2.safetensors"}, r"'\.\./part-1-of-2\.safetensors' in weight_map is not beside the index"),
        ({}, "the key 'weight_map' is missing"),
        ({"a": "part-1-of-2.safetensors"}, r"missing: .* and \d+ more$"),
    ],
)
def test_bad_index(directory: Path, weight_map: dict[str, str], message: str) -> None:
    index = shard(directory, ".safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=message):
        load(directory)


PRETRAINING = [(name, "AutoModelForMaskedLM") for name in CONFIGS]
PRETRAINING += [
    (name, "AutoModelForPreTraining") for name in ("bert", "electra", "electra-wide", "albert", "ernie-tasks")
]


@pytest.mark.parametrize(("name", "auto"), PRETRAINING)
def test_language_models_embed(name: str, auto: str, tmp_path: Path) -> None:
    """Nothing is left over but their heads, which are of no use here."""
    theirs = getattr(transformers, auto).from_config(CONFIGS[name]())
    for module in theirs.modules():
        randomize(module)
    tensors = {key: value.detach().clone() for key, value in theirs.state_dict().items()}
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    # Old checkpoints also hold the tied weights that transformers now leaves out.
    save_file(tensors, tmp_path / "model.safetensors")
    check_same(load(tmp_path), model)


TABLES = {
    "albert": ("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
    "bert": (WORD, "cls.predictions.decoder.weight"),
    "distilbert": ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    "electra": ("electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
    "ernie": ("ernie.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "eurobert-biased": ("model.embed_tokens.weight", "lm_head.weight"),
    "gte": ("gte.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "modernbert": ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    "mpnet": ("mpnet.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "nomic_bert": ("nomic_bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "xlm-roberta": ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
}
"""The table of words, and the name of the head that it is tied to."""


@pytest.mark.parametrize("name", TABLES)
def test_tied_table_under_the_name_of_the_head(name: str, tmp_path: Path) -> None:
    table, head = TABLES[name]
    theirs = transformers.AutoModelForMaskedLM.from_config(CONFIGS[name]())
    assert {table, head} <= dict(theirs.state_dict()).keys()
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({head: tensors.pop(table)}))
    check_same(load(tmp_path), expected)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=r"missing: encoder\.embeddings\.word\.weight$"):
        load(tmp_path)


def test_names_that_no_rule_matches_are_kept() -> None:
    """Among them those that only look like ours."""
    names = ["bert.encoder.layer.0.attention.self.query.weight", "bert.pooler.dense.scale", "encoder.layers.0.weight"]
    renamed = rename_tensors(dict.fromkeys(names, torch.ones(1)), BERT.prefix, BERT.renames, BERT.ignored)
    assert list(renamed) == ["stack.layers.0.attention.q.weight", *names[1:]]


def test_open_checkpoint_prefers_safetensors(directory: Path) -> None:
    torch.save({WORD: torch.zeros(1)}, directory / "pytorch_model.bin")
    assert open_checkpoint(directory)[WORD].like.shape == (101, 32)
