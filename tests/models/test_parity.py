"""Every family against transformers, on tiny random models: packed here, padded and masked there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_engines import BEST, Find
from tiny_models import (
    CONFIGS,
    FAMILIES,
    SIZES,
    Ids,
    TinyModel,
    build,
    make_model,
    make_sequences,
    pack,
    run_module,
    run_padded,
)
from torch import Tensor

from models.info import read_info
from models.layers import Sequences
from models.load import load_model
from models.mpnet import BUCKETS
from runtime.batch import Batch
from runtime.engine import Engine
from runtime.engines.transfer import to_tensors
from tests.tolerances import SAME_ENGINE, check_close

OFFSET_FAMILIES = ["roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"]
POSITION_OPS = {"arange", "index_select", "to"}
"""What it takes to count positions; their results are a few bytes per token."""


@dataclass(frozen=True)
class Case:
    """One family: the model, a mean-pooling engine over it, and a batch of 64 mixed lengths."""

    name: str
    model: TinyModel
    planned: Engine
    ids: list[Ids]
    types: list[Ids]

    @property
    def batch(self) -> Batch:
        return pack(self.ids, self.types)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, find_encoder: Find) -> Iterator[Case]:
    captured = find_encoder(request.param)
    planned = captured.build(BEST, "fp32")
    yield Case(request.param, captured.model, planned, *make_sequences(captured.model, mix_lengths(captured.model)))
    planned.close()


def mix_lengths(model: TinyModel) -> list[int]:
    """64 lengths, most of them short; the shortest and the longest that are possible are among them."""
    longest = model.info.max_input_tokens
    lengths = np.random.default_rng(1).lognormal(2.5, 0.8, 61).astype(int).clip(1, longest)
    return [1, *(int(length) for length in lengths), longest, 1]


def compute_rows(model: TinyModel, batch: Batch) -> Tensor:
    """Last hidden states of our module, op by op: [num_tokens, hidden_size]."""
    encoder = load_model(model.directory, model.info).fill().get_submodule("encoder")
    inputs = to_tensors(batch, torch.device("cpu"))
    with torch.no_grad():
        ids = (inputs["input_ids"], inputs["position_ids"], inputs["token_type_ids"])
        rows: Tensor = encoder(*ids, Sequences(inputs["cu_seqlens"], batch.max_seqlen))
    return rows


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_match_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name, tmp_path)
    ids, types = make_sequences(model, mix_lengths(model))
    hidden_states, mask = run_padded(model.theirs, ids, types)
    check_close(compute_rows(model, pack(ids, types)), hidden_states[mask.bool()])


def test_planned_engine_matches_transformers_and_module(case: Case) -> None:
    hidden_states, mask = run_padded(case.model.theirs, case.ids, case.types)
    expected = (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    planned = case.planned.run(case.batch).arrays["embeddings"]
    check_close(planned, expected, what="planned")
    check_close(planned, run_module(case.model, case.batch)["embeddings"], what="planned against module")


def test_alone_is_as_in_a_batch(case: Case) -> None:
    """One token in one sequence is among them, which the captured graph was never traced with."""
    together = case.planned.run(case.batch).arrays["embeddings"]
    for index, (ids, types) in enumerate(zip(case.ids, case.types, strict=True)):
        alone = case.planned.run(pack([ids], [types])).arrays["embeddings"][0]
        check_close(alone, together[index], tolerance=SAME_ENGINE, what=f"sequence {index} of {len(ids)} tokens")


def test_everything_but_positions_is_planned(case: Case) -> None:
    unplanned = set(case.planned.info.unplanned_ops)
    assert unplanned <= (POSITION_OPS if case.name in OFFSET_FAMILIES else set())


def test_weights_are_counted_once(case: Case) -> None:
    """Also those that several layers share, and tables of positions."""
    module = load_model(case.model.directory, case.model.info).module
    values = [*module.parameters(), *(module.buffers() if case.name != "mpnet" else ())]
    num_bytes = sum(value.numel() * value.element_size() for value in values)
    if case.name == "mpnet":  # instead of each bucket's bias, that of each distance
        num_heads = SIZES["num_attention_heads"]
        num_bytes += ((2 * case.model.info.max_input_tokens - 1) - BUCKETS.count) * num_heads * 4
    assert case.planned.info.weight_bytes == num_bytes


@pytest.mark.parametrize("name", OFFSET_FAMILIES)
def test_padding_id_inside_a_request(name: str, tmp_path: Path) -> None:
    """It takes no position, and those after it move up."""
    model = make_model(name, tmp_path)
    ids, _ = make_sequences(model, [9, 12, 1, 7])
    pad_token_id = model.theirs.config.pad_token_id
    for sequence, places in zip(ids, ([4], [0, 1, 7], [0], [6]), strict=True):
        sequence[places] = pad_token_id
    # Alone, because padding after it would be masked, and the ids inside are not.
    alone = [run_padded(model.theirs, [sequence])[0][0] for sequence in ids]
    check_close(compute_rows(model, pack(ids)), torch.cat(alone))


def test_poolings(tmp_path: Path) -> None:
    """Side by side."""
    model = make_model("bert", tmp_path)
    ids, types = make_sequences(model, [5, 1, 17, 17, 80])
    hidden_states, mask = run_padded(model.theirs, ids, types)
    rows = [states[kept.bool()] for states, kept in zip(hidden_states, mask, strict=True)]
    reduce = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.amax(0), "last": lambda x: x[-1]}
    expected = torch.stack([torch.cat([pool(row) for pool in reduce.values()]) for row in rows])
    expected = torch.nn.functional.normalize(expected, dim=-1)
    info = replace(model.info, pooling=tuple(reduce), output_dim=expected.shape[1], normalize=True)
    pooled = replace(model, info=info)
    check_close(run_module(pooled, pack(ids, types))["embeddings"], expected, what="module")
    check_close(build(pooled).run(pack(ids, types)).arrays["embeddings"], expected, what="planned")


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_match_transformers(name: str, tmp_path: Path) -> None:
    """Single texts and pairs, in one batch; of every other family by the planned engine too."""
    model = make_model(name, tmp_path, transformers.AutoModelForSequenceClassification)
    assert (model.info.task, model.info.output_dim) == ("classify", 3)
    ids, types = make_sequences(model, [1, 8, 40, 8, 3])
    types[1][:] = 0
    logits, _ = run_padded(model.theirs, ids, types)
    check_close(run_module(model, pack(ids, types))["logits"], logits)
    if name in FAMILIES[::2]:
        engine = build(model)
        check_close(engine.run(pack(ids, types)).arrays["logits"], logits, what="planned")
        pairs = zip(ids, types, strict=True)
        alone = [engine.run(pack([row], [kinds])).arrays["logits"] for row, kinds in pairs]
        check_close(np.concatenate(alone), logits, what="alone")


@pytest.mark.parametrize(
    "name", [each if each in FAMILIES else pytest.param(each, marks=pytest.mark.slow) for each in CONFIGS]
)
def test_token_logits_match_transformers(name: str, tmp_path: Path) -> None:
    """Of those families by the planned engine whose logits are by the module."""
    model = make_model(name, tmp_path, transformers.AutoModelForTokenClassification)
    assert (model.info.task, model.info.output_dim) == ("token_classify", 3)
    ids, types = make_sequences(model, [1, 8, 40, 8, 3])
    logits, mask = run_padded(model.theirs, ids, types)
    check_close(run_module(model, pack(ids, types))["token_logits"], logits[mask.bool()])
    if name in FAMILIES[1::2]:
        engine = build(model)
        together = engine.run(pack(ids, types)).arrays["token_logits"].copy()
        check_close(together, logits[mask.bool()], what="planned")
        pairs = zip(ids, types, strict=True)
        alone = [engine.run(pack([row], [kinds])).arrays["token_logits"].copy() for row, kinds in pairs]
        check_close(np.concatenate(alone), together, tolerance=SAME_ENGINE, what="alone")


def test_embedding_with_a_token_classifier_leaves_its_head_out(tmp_path: Path) -> None:
    make_model("bert", tmp_path, transformers.AutoModelForTokenClassification)
    info = read_info(tmp_path, task="embed", pooling="mean")
    assert load_model(tmp_path, info).fill().get_submodule("head").state_dict() == {}
