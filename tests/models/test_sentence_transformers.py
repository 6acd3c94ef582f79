"""People's model directories: our vectors and scores are those of sentence-transformers, whatever their files say."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_dirs import (
    HIDDEN_SIZE,
    POSITIONS,
    Module,
    Text,
    make_base,
    make_texts,
    tokenize,
    write_directory,
    write_json,
)
from tiny_models import TinyModel, run_module

from models.info import ModelInfo, read_info
from runtime.batch import Batch
from server.tasks.classify import compute_scores
from tests.tolerances import check_close

sentence_transformers = pytest.importorskip("sentence_transformers")

MEAN: Module = ("Pooling", {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode_mean_tokens": True})
NORMALIZE: Module = ("Normalize", None)
IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
TOKENIZER = "tokenizer_config.json"
SETTINGS = "config_sentence_transformers.json"


def pooling(**keys: Any) -> Module:
    return ("Pooling", {"word_embedding_dimension": HIDDEN_SIZE} | keys)


def dense(in_features: int, out_features: int, **keys: Any) -> Module:
    return ("Dense", {"in_features": in_features, "out_features": out_features} | keys)


@dataclass(frozen=True)
class Case:
    """`limit` and `dim` are what this directory has to come out with."""

    modules: tuple[Module, ...] = (MEAN, NORMALIZE)
    files: dict[str, object] = field(default_factory=dict)
    limit: int = POSITIONS
    dim: int = HIDDEN_SIZE
    transformer: str = ""


LEGACY = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
PROMPTS = {"prompts": {"query": "ab: ", "passage": "c"}, "default_prompt_name": "query"}

CASES: dict[str, Case] = {
    "plain": Case(),
    "limit of an older name": Case(files={"sentence_distilbert_config.json": {"max_seq_length": 16}}, limit=16),
    "first limit that says anything": Case(
        files={
            "sentence_bert_config.json": {},
            "sentence_roberta_config.json": {"max_seq_length": 14},
            "sentence_xlnet_config.json": {"max_seq_length": 9},
        },
        limit=14,
    ),
    "limit of the tokenizer": Case(files={TOKENIZER: {"model_max_length": 16, "max_length": 8}}, limit=16),
    "limit of an older tokenizer": Case(files={TOKENIZER: {"max_len": 16}}, limit=16),
    "no limit, as a float": Case(files={TOKENIZER: {"model_max_length": 1e30}}),
    "no limit, as a number": Case(files={TOKENIZER: {"model_max_length": 1000000000000000019884624838656}}),
    "own limit over the tokenizer's": Case(
        files={TOKENIZER: {"model_max_length": 16}, "sentence_bert_config.json": {"max_seq_length": 24}}, limit=24
    ),
    "own limit of null": Case(
        files={TOKENIZER: {"model_max_length": 16}, "sentence_bert_config.json": {"max_seq_length": None}}, limit=16
    ),
    "arguments of the tokenizer": Case(
        files={"sentence_bert_config.json": {"max_seq_length": 30, "tokenizer_args": {"model_max_length": 12}}},
        limit=12,
    ),
    "lower case": Case(files={"sentence_bert_config.json": {"do_lower_case": True}}),
    "several poolings": Case(modules=(pooling(**{f"pooling_mode_{name}": True for name in LEGACY}),), dim=6 * 32),
    "several poolings in another order": Case(
        modules=(pooling(pooling_mode=["lasttoken", "mean", "cls"]), NORMALIZE), dim=3 * 32
    ),
    "no pooling is the mean": Case(modules=(pooling(pooling_mode_cls_token=False), NORMALIZE)),
    "dense without a key": Case(modules=(MEAN, dense(32, 8), NORMALIZE), dim=8),
    "dense without a bias": Case(modules=(MEAN, dense(32, 8, bias=False, activation_function=IDENTITY)), dim=8),
    "two dense": Case(
        modules=(
            pooling(pooling_mode=["cls", "max"]),
            dense(64, 48, activation_function="torch.nn.modules.activation.GELU"),
            dense(48, 5, activation_function="torch.nn.Tanh"),
            NORMALIZE,
        ),
        dim=5,
    ),
    "norms anywhere": Case(
        modules=(MEAN, ("LayerNorm", {"dimension": 32}), NORMALIZE, dense(32, 40), ("Dropout", {"dropout": 0.1})),
        dim=40,
    ),
    "transformer in a folder": Case(
        modules=(MEAN, dense(32, 8), NORMALIZE),
        files={"0_BERT/sentence_bert_config.json": {"max_seq_length": 16}, SETTINGS: PROMPTS},
        transformer="0_BERT",
        limit=16,
        dim=8,
    ),
    "default prompt": Case(files={SETTINGS: PROMPTS}),
    "prompts of another class": Case(files={SETTINGS: PROMPTS | {"model_type": "SparseEncoder"}}, modules=(MEAN,)),
    "first numbers": Case(files={SETTINGS: {"truncate_dim": 12}}, dim=12),
} | {f"pooling {name}": Case(modules=(pooling(**{f"pooling_mode_{name}": True}),)) for name in LEGACY}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    make_base(directory)
    return directory


def run(directory: Path, info: ModelInfo, batch: Batch, output: str = "embeddings") -> torch.Tensor:
    return run_module(TinyModel(directory, None, info), batch)[output]


def encode(directory: Path, texts: list[str]) -> tuple[ModelInfo, torch.Tensor]:
    info = read_info(directory)
    prompt = info.prompts.get(info.default_prompt_name or "", "")
    return info, run(directory, info, tokenize(directory, info, texts, prompt))


def score(directory: Path, info: ModelInfo, texts: Sequence[Text], prompt: str = "") -> Any:
    logits = run(directory, info, tokenize(directory, info, texts, prompt), "logits")
    return compute_scores(logits.numpy(), info)


def load_theirs(directory: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(directory), device="cpu", local_files_only=True)


@pytest.mark.parametrize("name", CASES)
def test_embeddings(name: str, base: Path, tmp_path: Path) -> None:
    case = CASES[name]
    directory = write_directory(base, tmp_path, case.modules, case.files, transformer=case.transformer)
    theirs = load_theirs(directory)
    texts = make_texts()
    info, ours = encode(directory, texts)
    assert (info.max_input_tokens, info.output_dim) == (case.limit, case.dim)
    assert theirs.max_seq_length == case.limit
    check_close(ours, theirs.encode(texts, batch_size=len(texts)), what=name)


def test_files_of_its_own(base: Path, tmp_path: Path) -> None:
    """Saved by the library itself, in the words of the version that is installed."""
    modules = [pooling(pooling_mode=["mean", "max"]), dense(64, 12), NORMALIZE]
    source = write_directory(base, tmp_path / "source", modules, {SETTINGS: PROMPTS})
    theirs = load_theirs(source)
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    info, ours = encode(tmp_path / "saved", make_texts())
    assert info.prompts["passage"] == "c" and info.default_prompt_name == "query"
    check_close(ours, theirs.encode(make_texts(), batch_size=40))


@pytest.mark.parametrize("mode", LEGACY)
def test_prompt_that_is_not_pooled(mode: str, base: Path, tmp_path: Path) -> None:
    """What ModelInfo says of it: the first n tokens are left out, n being those of the prompt less its last special."""
    modules = [pooling(**{f"pooling_mode_{mode}": True, "include_prompt": False})]
    directory = write_directory(base, tmp_path, modules, {SETTINGS: PROMPTS})
    theirs = load_theirs(directory)
    info = read_info(directory)
    assert not info.pools_prompt
    num_left_out = tokenize(directory, info, [info.prompts["query"]]).max_seqlen - 1
    assert num_left_out == len(["[CLS]", "a", "##b", ":"])
    batch = tokenize(directory, info, ["dada"], info.prompts["query"])
    batch = replace(batch, arrays=batch.arrays | {"num_prompt_tokens": np.array([num_left_out], np.int32)})
    check_close(run(directory, info, batch)[0], theirs.encode("dada"))


PAIRS = [(text, other) for text, other in zip(make_texts(12), make_texts(12, seed=1), strict=True)]
SCORERS: dict[str, tuple[int, dict[str, object], str | None]] = {
    "identity, in version 2": (1, {"config.json": {"sbert_ce_default_activation_function": IDENTITY}}, "identity"),
    "sigmoid, in version 2": (3, {"config.json": {"sbert_ce_default_activation_function": SIGMOID}}, "sigmoid"),
    "identity, in version 4": (
        1,
        {
            "config.json": {
                "sentence_transformers": {"activation_fn": "torch.nn.Identity", "version": "4.1.0"},
                "sbert_ce_default_activation_function": SIGMOID,
            }
        },
        "identity",
    ),
    "none": (1, {}, None),
    "no types, and a limit": (
        1,
        {TOKENIZER: {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": 20}},
        None,
    ),
}


@pytest.mark.parametrize("name", SCORERS)
def test_scores_of_cross_encoders(name: str, tmp_path: Path) -> None:
    num_labels, files, activation = SCORERS[name]
    make_base(tmp_path / "base", num_labels=num_labels)
    directory = write_directory(tmp_path / "base", tmp_path / "model", [], files)
    (directory / "modules.json").unlink()
    theirs = sentence_transformers.CrossEncoder(str(directory), device="cpu", local_files_only=True)
    info = read_info(directory)
    assert info.activation == activation
    ours = score(directory, info, PAIRS, info.prompts.get(info.default_prompt_name or "", ""))
    check_close(ours.squeeze(1) if num_labels == 1 else ours, theirs.predict(PAIRS), what=name)


def test_cross_encoder_of_its_own(tmp_path: Path) -> None:
    """Saved by the library, whose own file's activation wins over that in config.json."""
    make_base(tmp_path / "base", num_labels=3)
    theirs = sentence_transformers.CrossEncoder(
        str(tmp_path / "base"), device="cpu", activation_fn=torch.nn.Sigmoid(), local_files_only=True, **PROMPTS
    )
    saved = tmp_path / "saved"
    theirs.save_pretrained(str(saved), create_model_card=False)
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    write_json(saved / "config.json", config | {"sbert_ce_default_activation_function": IDENTITY})
    info = read_info(saved)
    assert info.activation == "sigmoid" and info.default_prompt_name == "query"
    check_close(score(saved, info, PAIRS, info.prompts["query"]), theirs.predict(PAIRS))


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression(num_labels: int, tmp_path: Path) -> None:
    """The score is the logit, as transformers' pipeline has it."""
    make_base(tmp_path, num_labels=num_labels)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "config.json", config | {"problem_type": "regression"})
    write_json(tmp_path / TOKENIZER, {"do_lower_case": False, "model_max_length": POSITIONS})
    info = read_info(tmp_path)
    texts = make_texts(8)
    ours = score(tmp_path, info, texts)
    pipeline = transformers.pipeline("text-classification", str(tmp_path), device="cpu", top_k=None, truncation=True)
    theirs = [{row["label"]: row["score"] for row in rows} for rows in pipeline(texts)]
    check_close(ours, np.array([[row[name] for name in info.id2label.values()] for row in theirs]))
