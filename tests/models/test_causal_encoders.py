"""Decoders that read: rows, vectors, labels and judgements against transformers, in every precision."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from tiny_decoders import CONFIGS, make_decoder, make_ids, randomize, run_alone
from tiny_engines import ROUNDING, Find, allow, capture_model, list_cases
from tiny_models import Ids, TinyModel, build, pack, run_module
from torch import Tensor
from torch.nn import functional

from models.further_heads import FurtherHead, list_own_heads
from models.info import ModelDirectoryError, read_info
from models.load import load_model
from models.load_causal import load_causal
from tests.tolerances import (
    DECODER_TOLERANCES,
    ENCODER_TOLERANCES,
    EXPERTS_TOLERANCES,
    LAST_TOKEN_TOLERANCES,
    check_close,
)

Floats = npt.NDArray[np.float32]
SEQLENS = [1, 2, 15, 16, 17, 33, 48, 7, 79]
NAMES = [name for name in CONFIGS if name not in ("gemma2", "llama-longrope", "phi3-longrope")]
"""What is served to generate only."""
OFTEN = ["qwen3", "mistral"]


@torch.no_grad()
def run_rows(theirs: transformers.PreTrainedModel, ids: list[Ids]) -> list[Tensor]:
    """transformers' last hidden states of each sequence alone."""
    trunk = theirs.base_model
    return [trunk(torch.from_numpy(sequence)[None], use_cache=False).last_hidden_state[0] for sequence in ids]


def make_embedder(name: str, directory: Path) -> TinyModel:
    made = make_decoder(name, directory)
    info = read_info(directory, task="embed", pooling="last", normalize=True)
    return TinyModel(directory, made.theirs, info, list_own_heads(directory, info))


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_embedder(name, tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(NAMES, OFTEN))
def test_every_precision(find: Find, name: str, kernels: str, precision: str) -> None:
    captured = find(name)
    ids = make_ids(SEQLENS)
    engine = captured.build(kernels, precision)
    found = {each: array.copy() for each, array in engine.run(pack(ids)).arrays.items()}
    rows = run_rows(captured.model.theirs, ids)
    has_experts = "moe" in name or "mixtral" in name
    of_tokens, of_last = [EXPERTS_TOLERANCES] * 2 if has_experts else [DECODER_TOLERANCES, LAST_TOKEN_TOLERANCES]
    check_close(
        found["tokens.token_embeddings"], torch.cat(rows), tolerance=allow(of_tokens[precision], kernels, precision)
    )
    expected = functional.normalize(torch.stack([each[-1] for each in rows]), dim=-1).numpy()
    kept = leave_out_farthest(found["embeddings"], expected) if has_experts else np.arange(len(expected))
    check_close(found["embeddings"][kept], expected[kept], tolerance=allow(of_last[precision], kernels, precision))
    if kernels not in ROUNDING:
        alone = [engine.run(pack([each])).arrays["embeddings"].copy() for each in ids]
        np.testing.assert_array_equal(np.concatenate(alone), found["embeddings"])
    assert not engine.info.unplanned_ops


def leave_out_farthest(found: Floats, expected: Floats) -> npt.NDArray[np.int64]:
    """All vectors but one, which is another where rounding takes another expert for a text's last token."""
    return np.sort(np.argsort(np.linalg.norm(found - expected, axis=1))[:-1])


def test_all_of_the_text_is_seen_where_config_says_so(tmp_path: Path) -> None:
    """The first token's row depends on the last."""
    made = make_decoder("qwen3", tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(keys | {"is_causal": False}))
    with pytest.raises(ModelDirectoryError, match=r"is_causal is False: .* cannot generate\. Set task: embed"):
        read_info(tmp_path)
    info = read_info(tmp_path, task="embed", pooling="cls")
    ids = make_ids([9])
    found = run_module(TinyModel(tmp_path, made.theirs, info), pack(ids))["embeddings"]
    with torch.no_grad():
        everything = torch.zeros(1, 1, 9, 9)
        inputs = {"input_ids": torch.from_numpy(ids[0])[None], "attention_mask": {"full_attention": everything}}
        expected = made.theirs.base_model(**inputs, use_cache=False).last_hidden_state[0, :1]
    check_close(found, expected)


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "qwen3", "mistral", "falcon"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3_text", "gpt_neox", "phi3", "stablelm")),
    ],
)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_classifiers_read_the_last_token(name: str, num_labels: int, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    config.num_labels, config.pad_token_id = num_labels, None
    torch.manual_seed(1)
    auto = transformers.AutoModelForSequenceClassification
    theirs = auto.from_config(config, attn_implementation="eager").eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    info = read_info(tmp_path)
    assert (info.task, info.output_dim) == ("classify", num_labels)
    ids = make_ids([5, 17, 1])
    with torch.no_grad():
        expected = torch.cat([theirs(torch.from_numpy(each)[None]).logits for each in ids])
    model = TinyModel(tmp_path, theirs, info)
    check_close(run_module(model, pack(ids))["logits"], expected)
    if name == "qwen3":
        check_close(build(model).run(pack(ids)).arrays["logits"], expected, what="planned")


def write_judge(directory: Path, **answers: int) -> None:
    """As CrossEncoder of sentence-transformers 6 saves it."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_LogitScore",
            "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
        },
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_LogitScore").mkdir()
    (directory / "1_LogitScore" / "config.json").write_text(json.dumps(answers))


@pytest.fixture(scope="module")
def find_judge(tmp_path_factory: pytest.TempPathFactory) -> Find:
    def make(name: str) -> TinyModel:
        directory = tmp_path_factory.mktemp(name)
        made = make_decoder(name, directory)
        write_judge(directory, true_token_id=40, false_token_id=7)
        return TinyModel(directory, made.theirs, read_info(directory))

    return cache(lambda name: capture_model(lambda: make(name)))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "granite"])
def test_judges_compare_two_logits(find_judge: Find, name: str, precision: str) -> None:
    """With a table of its own (qwen3), with that of the embeddings (qwen2), and with scaled logits (granite)."""
    captured = find_judge(name)
    info = captured.model.info
    assert (info.task, info.output_dim, info.answer_token_ids) == ("classify", 1, (40, 7))
    engine = captured.build("torch", precision)
    ids = make_ids([5, 17, 1])
    logits = torch.stack([run_alone(captured.model.theirs, [each])[-1] for each in ids])
    expected = (logits[:, 40] - logits[:, 7])[:, None]
    check_close(engine.run(pack(ids)).arrays["logits"], expected, tolerance=LAST_TOKEN_TOLERANCES[precision])


def test_a_judge_with_one_answer(tmp_path: Path) -> None:
    made = make_decoder("qwen3", tmp_path)
    write_judge(tmp_path, true_token_id=40)
    model = TinyModel(tmp_path, made.theirs, read_info(tmp_path))
    ids = make_ids([5, 17])
    logits = torch.stack([run_alone(made.theirs, [each])[-1] for each in ids])
    found = run_module(model, pack(ids))["logits"]
    check_close(found, logits[:, 40:41], tolerance=ENCODER_TOLERANCES["fp32"])


def test_a_language_model_is_a_judge_if_told_so(tmp_path: Path) -> None:
    """Its answers are then the tokens yes and no."""
    make_decoder("qwen3", tmp_path)
    with pytest.raises(ModelDirectoryError, match="there is no token 'yes'"):
        read_info(tmp_path, task="classify")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"no": 3, "yes": 9}}}))
    assert read_info(tmp_path, task="classify").answer_token_ids == (9, 3)
    assert read_info(tmp_path).task == "generate"


def test_a_directory_with_pooling_embeds(tmp_path: Path) -> None:
    """Qwen3-Embedding's architecture is that of a generator."""
    make_decoder("qwen3", tmp_path)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"path": "" if not place else f"{place}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(kinds)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    info = read_info(tmp_path)
    assert (info.task, info.pooling, info.normalize) == ("embed", ("last",), True)
    load_model(tmp_path, info)
    assert read_info(tmp_path, task="generate").task == "generate"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma2", "attn_logit_softcapping is served to generate only"),
        (
            "phi3-longrope",
            r"longrope.* up to 4 tokens set limits\.max_input_tokens to that",
        ),
    ],
)
def test_what_only_generates_is_refused(name: str, message: str, tmp_path: Path) -> None:
    make_decoder(name, tmp_path)
    with pytest.raises(ModelDirectoryError, match=message):
        load_model(tmp_path, read_info(tmp_path, task="embed"))


@pytest.mark.parametrize("task", ["multi_vector", "token_weights"])
def test_tasks_that_need_an_encoder(task: str, tmp_path: Path) -> None:
    make_decoder("qwen3", tmp_path)
    info = read_info(tmp_path, task="embed")
    with pytest.raises(ModelDirectoryError, match=f"the task {task} needs an encoder"):
        load_causal(tmp_path, replace(info, task=task))
    head = FurtherHead(tmp_path, replace(info, task=task, head="more"))
    with pytest.raises(ModelDirectoryError, match=f"the task {task} needs an encoder"):
        load_causal(tmp_path, info, [head])


def test_longrope_is_read_up_to_its_first_length(tmp_path: Path) -> None:
    made = make_decoder("phi3-longrope", tmp_path)
    info = read_info(tmp_path, task="embed", pooling="last", normalize=False)
    info = replace(info, max_input_tokens=4)
    ids = make_ids([4, 2])
    expected = torch.stack([rows[-1] for rows in run_rows(made.theirs, ids)])
    check_close(run_module(TinyModel(tmp_path, made.theirs, info), pack(ids))["embeddings"], expected)


def test_capped_logits_do_not_judge(tmp_path: Path) -> None:
    make_decoder("gemma3_text-biased", tmp_path)
    write_judge(tmp_path, true_token_id=40, false_token_id=7)
    with pytest.raises(
        ModelDirectoryError, match="final_logit_softcapping is served to generate only, and not to judge"
    ):
        load_model(tmp_path, read_info(tmp_path))
