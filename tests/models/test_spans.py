"""Masked places and answers' borders: what engines compute of them in every precision, and transformers' logits."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from tiny_engines import ROUNDING, Captured, Find, allow, capture_model, find_tolerances, list_cases
from tiny_models import CONFIGS, Ids, TinyModel, make_model, make_sequences, pack, run_padded

from models.info import ModelDirectoryError, read_info
from runtime.engine import Engine
from runtime.quantization.simulate import find_linears
from tests.tolerances import BORDER_TOLERANCES, SPARSE_TOLERANCES, check_close

OFTEN = ["bert", "electra", "distilbert", "modernbert", "eurobert"]
SEQLENS = [1, 2, 15, 16, 17, 33, 1, 48, 49, 65, 3, 73]
MASK = 6

ANSWERERS = [name for name in CONFIGS if not name.startswith(("eurobert", "gte", "nomic_bert"))]
"""transformers has no such head for the others."""

Rows = npt.NDArray[np.float32]


def write_mask_token(directory: Path) -> None:
    added = [{"id": MASK, "content": "[MASK]"}]
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))


def make_masked(name: str, directory: Path) -> TinyModel:
    made = make_model(name, directory, transformers.AutoModelForMaskedLM)
    write_mask_token(directory)
    return TinyModel(directory, made.theirs, read_info(directory, task="fill_mask"))


@pytest.fixture(scope="module")
def find_masked(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_masked(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(scope="module")
def find_answerer(tmp_path_factory: pytest.TempPathFactory) -> Find:
    auto = transformers.AutoModelForQuestionAnswering

    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name), auto, 2)))


def draw_places(ids: list[Ids]) -> list[Ids]:
    """Of each sequence none, one or several tokens."""
    random = np.random.default_rng(1)
    counts = [0, 1, 3, 2, 0, 1, 1, 4, 1, 5, 0, 2]
    return [np.sort(random.permutation(len(each))[:count]) for each, count in zip(ids, counts[: len(ids)], strict=True)]


def run_masked(engine: Engine, ids: list[Ids], types: list[Ids], places: list[Ids]) -> list[Rows]:
    """Rows of each sequence."""
    batch = pack(ids, types)
    firsts = batch.cu_seqlens[:-1]
    batch.arrays["logit_rows"] = np.concatenate([first + each for first, each in zip(firsts, places, strict=True)])
    rows = engine.run(batch).arrays["masked_logits"].copy()
    return np.split(rows, np.cumsum([len(each) for each in places])[:-1])


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(CONFIGS, OFTEN))
def test_every_precision_of_masked_places(find_masked: Find, name: str, kernels: str, precision: str) -> None:
    captured = find_masked(name)
    engine = captured.build(kernels, precision)
    ids, types = make_sequences(captured.model, SEQLENS)
    places = draw_places(ids)
    found = run_masked(engine, ids, types, places)
    logits, _ = run_padded(captured.model.theirs, ids, types)
    expected = torch.cat([row[each] for row, each in zip(logits, places, strict=True)])
    check_close(
        np.concatenate(found),
        expected,
        tolerance=allow(find_tolerances(captured, SPARSE_TOLERANCES)[precision], kernels, precision),
    )
    if kernels not in ROUNDING:
        alone = [run_masked(engine, [a], [b], [c])[0] for a, b, c in zip(ids, types, places, strict=True)]
        np.testing.assert_array_equal(np.concatenate(alone), np.concatenate(found))
    assert not engine.info.unplanned_ops


def test_only_masked_places_are_multiplied_with_the_vocabulary(find_masked: Find) -> None:
    """No tensor of the program has a row of words for every token."""
    captured = find_masked("bert")
    shapes = [
        tuple(map(str, node.meta["val"].shape))
        for node in captured.graph_module.graph.nodes
        if node.op == "call_function" and isinstance(node.meta["val"], torch.Tensor)
    ]
    wide = {dims[0] for dims in shapes if dims[-1] == str(captured.model.info.vocab_size)}
    tall = {dims[0] for dims in shapes if dims[-1] == "64"}  # what every token goes through
    assert len(wide) == 1 and not wide & tall


def test_heads_are_not_quantised(find_masked: Find, find_answerer: Find) -> None:
    for find in (find_masked, find_answerer):
        names = find_linears(find("bert").graph_module)
        assert names and not [name for name in names if "head" in name]


def test_a_table_of_its_own(tmp_path: Path) -> None:
    config = CONFIGS["electra"]()
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    theirs = transformers.ElectraForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path)
    write_mask_token(tmp_path)
    model = TinyModel(tmp_path, theirs, read_info(tmp_path, task="fill_mask"))
    ids, types = make_sequences(model, [5, 9])
    places = [np.array([1, 3]), np.array([8])]
    found = run_masked(capture_model(lambda: model).build("torch", "fp32"), ids, types, places)
    logits, _ = run_padded(theirs, ids, types)
    check_close(np.concatenate(found), torch.stack([logits[0, 1], logits[0, 3], logits[1, 8]]))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_batch_that_says_nothing_is_guessed_in_the_middle(find_masked: Find, precision: str) -> None:
    """What warm-up, timing and the choice of a precision run."""
    captured = find_masked("bert")
    engine = captured.build("torch", precision)
    ids, types = make_sequences(captured.model, [5, 1, 8])
    found = engine.run(pack(ids, types)).arrays["masked_logits"]
    middles = [np.array([len(each) // 2]) for each in ids]
    np.testing.assert_array_equal(found, np.concatenate(run_masked(engine, ids, types, middles)))


def test_auto_precision_judges_masked_places(find_masked: Find) -> None:
    engine = find_masked("bert").build("torch", "auto", has_bf16=True)
    assert engine.info.chosen is not None
    assert {each.accuracy.agrees_on for each in engine.info.chosen.candidates} == {"labels"}
    assert all(each.accuracy.num_texts == 128 for each in engine.info.chosen.candidates)


def run_borders(engine: Engine, ids: list[Ids], types: list[Ids]) -> list[Rows]:
    """Rows of each sequence."""
    rows = engine.run(pack(ids, types)).arrays["token_logits"].copy()
    return np.split(rows, np.cumsum([len(each) for each in ids])[:-1])


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(ANSWERERS, ["bert", "mpnet", "modernbert"]))
def test_every_precision_of_borders(find_answerer: Find, name: str, kernels: str, precision: str) -> None:
    captured = find_answerer(name)
    info = captured.model.info
    assert (info.task, info.output_dim) == ("question_answering", 2)
    engine = captured.build(kernels, precision)
    ids, types = make_sequences(captured.model, SEQLENS)
    found = run_borders(engine, ids, types)
    check_close(
        np.concatenate(found),
        run_theirs(captured, ids, types),
        tolerance=allow(find_tolerances(captured, BORDER_TOLERANCES)[precision], kernels, precision),
    )
    if kernels not in ROUNDING:
        alone = [run_borders(engine, [a], [b])[0] for a, b in zip(ids, types, strict=True)]
        np.testing.assert_array_equal(np.concatenate(alone), np.concatenate(found))
    assert not engine.info.unplanned_ops


@torch.no_grad()
def run_theirs(captured: Captured, ids: list[Ids], types: list[Ids]) -> Rows:
    """One sequence at a time: [num_tokens, 2]."""
    theirs, rows = captured.model.theirs, []
    for each, kinds in zip(ids, types, strict=True):
        inputs = {"input_ids": torch.from_numpy(each)[None]}
        if captured.model.has_token_types:
            inputs["token_type_ids"] = torch.from_numpy(kinds)[None]
        output = theirs(**inputs)
        rows.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=1))
    return np.asarray(torch.cat(rows).numpy())


def test_masked_language_models_embed_unless_they_are_asked_to_fill(tmp_path: Path) -> None:
    made = make_masked("roberta", tmp_path)
    assert (made.info.task, made.info.output_dim, made.info.mask_token_id) == ("fill_mask", 101, MASK)
    assert read_info(tmp_path).task == "embed"


@pytest.mark.parametrize("setting", ["<mask>", {"content": "<mask>", "lstrip": True}])
def test_the_mask_token_is_what_the_tokenizer_calls_so(tmp_path: Path, setting: object) -> None:
    make_masked("bert", tmp_path)
    added = {"4": {"content": "[MASK]"}, "7": {"content": "<mask>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": setting, "added_tokens_decoder": added}))
    info = read_info(tmp_path, task="fill_mask")
    assert (info.mask_token_id, info.mask_token) == (7, "<mask>")


def test_other_directories_are_refused(tmp_path: Path) -> None:
    make_masked("bert", tmp_path / "masked")
    (tmp_path / "masked" / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 3, "content": "[SEP]"}]}))
    with pytest.raises(ModelDirectoryError, match="task fill_mask needs a mask_token among the tokenizer's added"):
        read_info(tmp_path / "masked", task="fill_mask")
    with pytest.raises(ModelDirectoryError, match="task question_answering needs a question answering head"):
        read_info(tmp_path / "masked", task="question_answering")
    make_model("bert", tmp_path / "encoder")
    with pytest.raises(ModelDirectoryError, match="task fill_mask needs a masked language model head"):
        read_info(tmp_path / "encoder", task="fill_mask")
