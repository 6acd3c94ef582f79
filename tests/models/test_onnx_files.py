"""ONNX files served as they are, beside transformers: every task, what is pooled and how, and what files differ in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from late_dirs import make_pylate
from onnx_dirs import INPUTS, deploy, export, load_theirs, make_directory, open_directory, strip
from onnxruntime.quantization import quantize_dynamic
from sentence_dirs import HIDDEN_SIZE, VOCAB, make_base, write_directory
from tiny_models import Ids, TinyModel, pack, run_module, run_padded

from runtime.batch import Batch
from runtime.engine import Engine
from tests.tolerances import ENCODER_TOLERANCES, TOLERANCES, Tolerance, check_close

SEQLENS = (1, 17, 5, 28, 2, 17)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With weights, and files of rows and of both rows and vectors."""
    directory = tmp_path_factory.mktemp("embedder") / "model"
    theirs = make_directory(directory)
    both = ("token_embeddings", "sentence_embedding")
    export(EmbedsTokens(theirs), directory / "onnx" / "model.onnx", both)
    return directory


class EmbedsTokens(torch.nn.Module):
    """transformers' model, with its rows under sentence-transformers' name as well."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = self.theirs(**inputs).last_hidden_state
        return {"last_hidden_state": rows, "token_embeddings": rows}


def make_texts(seed: int = 0) -> tuple[list[Ids], list[Ids]]:
    """Random ids, not of special tokens, and types."""
    random = np.random.default_rng(seed)
    ids = [random.integers(5, len(VOCAB), seqlen) for seqlen in SEQLENS]
    return ids, [(np.arange(seqlen) >= seqlen // 2).astype(np.int64) for seqlen in SEQLENS]


def make_batch(seed: int = 0) -> Batch:
    batch = pack(*make_texts(seed))
    batch.arrays["num_prompt_tokens"] = np.minimum(np.array(SEQLENS) - 1, 2).astype(np.int32)
    batch.arrays["num_keys"] = np.maximum(np.array(SEQLENS) - 3, 1).astype(np.int32)
    return batch


def check_engine(engine: Engine, name: str, expected: Any, tolerance: Tolerance | None = None) -> None:
    """Together as expected, and each text alone as together."""
    ids, types = make_texts()
    together = engine.run(pack(ids, types)).arrays[name]
    check_close(together, expected, tolerance=tolerance, what=name)
    alone = [engine.run(pack([text], [kinds])).arrays[name] for text, kinds in zip(ids, types, strict=True)]
    check_close(np.concatenate(alone), together, tolerance=tolerance, what=f"{name} alone")


def compute_rows(theirs: Any) -> torch.Tensor:
    """transformers' rows of tokens, or their logits."""
    padded, mask = run_padded(theirs, *make_texts())
    return padded[mask.bool()]


def compute_means(theirs: Any) -> torch.Tensor:
    return torch.stack([rows.mean(0) for rows in compute_rows(theirs).split(SEQLENS)])


def test_rows_are_pooled_where_there_are_no_weights(embedder: Path, tmp_path: Path) -> None:
    """The only file of a directory needs no name."""
    directory = strip(embedder, tmp_path / "model")
    (directory / "onnx" / "model.onnx").unlink()
    engine = open_directory(directory)
    check_engine(engine, "embeddings", compute_means(load_theirs(embedder)))
    info = engine.info
    assert (info.kind, info.precision, info.precision_reason) == ("onnxruntime", "as in the file", "model.onnx")
    assert info.pads and info.weight_bytes == (directory / "model.onnx").stat().st_size
    assert [spec.name for spec in info.outputs] == ["embeddings", "tokens.token_embeddings"]


@pytest.mark.parametrize(
    ("modules", "prompt"),
    [
        ([("Pooling", {"pooling_mode_cls_token": True}), ("Normalize", None)], False),
        ([("Pooling", {"pooling_mode": ["lasttoken", "max"]})], False),
        ([("Pooling", {"pooling_mode": "weightedmean", "include_prompt": False})], True),
        (
            [
                ("Pooling", {"pooling_mode_mean_sqrt_len_tokens": True}),
                ("Dense", {"in_features": HIDDEN_SIZE, "out_features": 7}),
                ("LayerNorm", {"dimension": 7}),
            ],
            False,
        ),
    ],
    ids=["cls", "joined", "promptless", "dense"],
)
def test_vectors_are_made_as_the_directory_says(embedder: Path, tmp_path: Path, modules: Any, prompt: bool) -> None:
    directory = write_directory(embedder, tmp_path / "model", modules, {})
    deployed = deploy(directory, engine={"onnxruntime": {"file": "model.onnx"}})
    batch = make_batch()
    expected = run_module(TinyModel(directory, None, deployed.info, deployed.heads), batch)  # type: ignore[arg-type]
    found = open_directory(directory, engine={"onnxruntime": {"file": "model.onnx"}}).run(batch).arrays
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        check_close(found[name], values, what=name)


def test_vectors_that_the_file_has_pooled_are_taken(embedder: Path) -> None:
    """Unless another pooling is configured."""
    file = {"onnxruntime": {"file": "onnx/model.onnx"}}
    means = compute_means(load_theirs(embedder))
    scaled = torch.nn.functional.normalize(means, dim=-1)
    check_engine(open_directory(embedder, engine=file), "embeddings", scaled)
    check_engine(open_directory(embedder, engine=file, pooling="mean"), "embeddings", means)
    named = {"onnxruntime": {"file": "onnx/model.onnx", "output": "token_embeddings"}}
    check_engine(open_directory(embedder, engine=named), "embeddings", means)


def test_only_what_is_wanted_is_computed(embedder: Path) -> None:
    engine = open_directory(embedder, engine={"onnxruntime": {"file": "onnx/model.onnx"}})
    batch = replace(make_batch(), outputs=frozenset({"tokens.token_embeddings"}))
    found = engine.run(batch).arrays
    assert list(found) == ["tokens.token_embeddings"]
    check_close(found["tokens.token_embeddings"], compute_rows(load_theirs(embedder)))


def test_tokens_have_no_vectors_where_the_file_gives_none(embedder: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "model")
    export(load_theirs(tmp_path / "model"), tmp_path / "model" / "model.onnx", ["sentence_embedding"])
    engine = open_directory(tmp_path / "model", engine={"onnxruntime": {"file": "model.onnx"}})
    assert [spec.name for spec in engine.info.outputs] == ["embeddings"]


def test_late_interaction_hides_what_it_was_filled_up_with(embedder: Path, tmp_path: Path) -> None:
    directory = make_pylate(embedder, tmp_path / "model")
    deployed = deploy(directory, engine={"onnxruntime": {"file": "model.onnx"}})
    batch = make_batch()
    assert deployed.info.late_interaction is not None and deployed.info.late_interaction.has_unseen_tokens
    expected = run_module(TinyModel(directory, None, deployed.info), batch)  # type: ignore[arg-type]
    found = open_directory(directory, engine={"onnxruntime": {"file": "model.onnx"}}).run(batch).arrays
    check_close(found["token_embeddings"], expected["token_embeddings"])


@pytest.mark.parametrize(
    ("auto", "outputs", "name"),
    [
        (transformers.AutoModelForSequenceClassification, ["logits"], "logits"),
        (transformers.AutoModelForTokenClassification, ["logits"], "token_logits"),
        (transformers.AutoModelForQuestionAnswering, ["start_logits", "end_logits"], "token_logits"),
    ],
    ids=["classify", "token_classify", "question_answering"],
)
def test_logits_are_those_of_transformers(tmp_path: Path, auto: Any, outputs: Sequence[str], name: str) -> None:
    theirs = make_directory(tmp_path / "full", auto, outputs=outputs)
    ids, types = make_texts()
    with torch.no_grad():
        alone = [
            theirs(torch.from_numpy(text)[None], token_type_ids=torch.from_numpy(kinds)[None])
            for text, kinds in zip(ids, types, strict=True)
        ]
    logits = [torch.stack([answer[key] for key in outputs], dim=-1) for answer in alone]
    expected = torch.cat([each.reshape(-1, 2) if name == "token_logits" else each[..., 0] for each in logits])
    check_engine(open_directory(strip(tmp_path / "full", tmp_path / "model")), name, expected)


def test_words_are_those_of_transformers(tmp_path: Path) -> None:
    """Of the tokens that are guessed; and for sparse vectors the largest of all tokens."""
    theirs = make_directory(tmp_path / "model", transformers.AutoModelForMaskedLM, outputs=["logits"])
    rows = compute_rows(theirs)
    file = {"onnxruntime": {"file": "model.onnx"}}
    batch = make_batch()
    batch.arrays["logit_rows"] = np.array([0, 3, 20, 21, 69], np.int64)
    found = open_directory(tmp_path / "model", task="fill_mask", engine=file).run(batch).arrays
    check_close(found["masked_logits"], rows[batch.arrays["logit_rows"]])
    largest = torch.stack([each.amax(0) for each in rows.split(SEQLENS)])
    check_engine(open_directory(tmp_path / "model", task="sparse", engine=file), "max_logits", largest)


def test_inputs_and_numbers_of_other_types_and_names(tmp_path: Path) -> None:
    make_base(tmp_path)
    theirs = load_theirs(tmp_path)
    names = ["ids", "mask", "types"]
    export(theirs, tmp_path / "m.onnx", inputs=names, id_dtype=torch.int32, dtype=torch.float16)
    told = {"file": "m.onnx", "inputs": dict(zip(INPUTS, names, strict=True))}
    engine = open_directory(tmp_path, engine={"onnxruntime": told})
    check_engine(engine, "embeddings", compute_means(theirs), TOLERANCES[torch.float16])


def test_quantised_files(embedder: Path) -> None:
    """Rounded, and by the range of a whole batch: a text's numbers depend on the others in it."""
    quantize_dynamic(embedder / "model.onnx", embedder / "model_quantized.onnx")
    engine = open_directory(embedder, engine={"onnxruntime": {"file": "model_quantized.onnx"}})
    check_engine(engine, "embeddings", compute_means(load_theirs(embedder)), ENCODER_TOLERANCES["int8"])


def test_external_data_lies_beside_the_file(embedder: Path, tmp_path: Path) -> None:
    directory = strip(embedder, tmp_path / "model")
    content = onnx.load(directory / "model.onnx")
    file = directory / "onnx" / "model.onnx"
    onnx.save(content, file, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    engine = open_directory(directory, engine={"onnxruntime": {"file": "onnx/model.onnx"}})
    check_engine(engine, "embeddings", compute_means(load_theirs(embedder)))
    assert engine.info.weight_bytes == file.stat().st_size + file.with_name("model.onnx_data").stat().st_size


def test_providers_that_leave_nodes_to_the_cpu_are_told_of(embedder: Path) -> None:
    """Azure's takes none."""
    providers = [{"name": name} for name in ("AzureExecutionProvider", "CPUExecutionProvider")]
    engine = open_directory(embedder, engine={"onnxruntime": {"file": "model.onnx", "providers": providers}})
    (_, none), (name, count) = engine.info.nodes
    assert (none, name) == (0, "CPUExecutionProvider") and count > 20
