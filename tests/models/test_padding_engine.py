"""An engine that says it pads gets the padded batcher and a table of costs, which is kept; no other does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.info import ModelInfo
from runtime.batch import ArraySpec
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.config import ModelConfig, ServerConfig
from server.engine.batchers.packed import PackedBatcher
from server.engine.batchers.padded import PaddedBatcher
from server.engine.cost_model import CostModel
from server.engine.padded_costs import CostTable, PaddedCosts
from server.metrics import Metrics
from server.processes.deployment import DeployedModel, Deployment
from server.processes.engine_process import build_loop
from server.processes.opening import Costs, cost_path, find_costs, load_costs, save_costs

TABLE = CostTable(np.array([1, 8]), np.array([1, 32]), np.array([[0.1, 0.2], [0.3, 1 / 3]]))


def make_model(folder: Path, **engine: object) -> DeployedModel:
    settings = {"name": "m", "source": {"path": str(folder)}, "engine": engine, "limits": {"max_batch_requests": 8}}
    return DeployedModel(0, ModelConfig.model_validate(settings), folder, ModelInfo("BertModel", "embed", 99, 2, 32, 8))


def make_engine(*, pads: bool) -> NullEngine:
    outputs = (ArraySpec("embeddings", "float32", ("num_seqs", 8)),)
    return NullEngine(EngineInfo("null", "none", "", "cpu", 1, outputs, max_batch_tokens=64, pads=pads))


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize(("pads", "kind"), [(False, PackedBatcher), (True, PaddedBatcher)])
def test_batcher_is_chosen_by_what_the_engine_says(tmp_path: Path, pads: bool, kind: type, warmup: bool) -> None:
    model = make_model(tmp_path, warmup=warmup)
    deployment = Deployment(ServerConfig(models=(model.config,)), (model,), tmp_path, num_cores=1)
    loop = build_loop(deployment, model, 0, Metrics(CollectorRegistry()), lambda *_: make_engine(pads=pads))
    assert type(loop.batcher) is kind
    assert loop.batcher.limits.max_batch_tokens == 64
    assert (loop.batcher.tokens_per_s() > 0) == warmup
    if isinstance(loop.batcher, PaddedBatcher) and warmup:
        assert loop.batcher.costs.table.num_seqs[-1] == 8 and loop.batcher.costs.table.seqlens[-1] == 32


@pytest.mark.parametrize("costs", [CostModel(0.1, 0.2, 1 / 3), PaddedCosts(TABLE, is_measured=True)])
def test_costs_are_kept_beside_the_model(tmp_path: Path, costs: Costs) -> None:
    save_costs(costs, tmp_path / "m.pt")
    again = load_costs(tmp_path / "m.pt")
    assert type(again) is type(costs)
    if isinstance(again, PaddedCosts):
        assert again.is_measured and again.predict(8, 32) == 1 / 3
        assert again.table.dump() == TABLE.dump()
    else:
        assert again == costs


@pytest.mark.parametrize("pads", [False, True])
def test_costs_of_the_other_kind_are_measured_anew(tmp_path: Path, pads: bool) -> None:
    """As where an engine of another kind has left them."""
    model = replace(make_model(tmp_path), compiled=tmp_path / "m.pt")
    save_costs(CostModel(0.1, 0.2, 0.3) if pads else PaddedCosts(TABLE, is_measured=True), tmp_path / "m.pt")
    found = find_costs(model, make_engine(pads=pads), tmp_path / "m.pt", lambda *_: None)
    assert isinstance(found, PaddedCosts) == pads
    again = load_costs(tmp_path / "m.pt")
    assert isinstance(again, PaddedCosts) == pads, "what was measured is there the next time"


def test_damaged_costs_are_none(tmp_path: Path) -> None:
    save_costs(PaddedCosts(TABLE, is_measured=True), tmp_path / "m.pt")
    path = cost_path(tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-3])
    assert load_costs(tmp_path / "m.pt") is None
