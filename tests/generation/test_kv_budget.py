"""How many blocks a KV cache gets: what the budget leaves, and of free memory only this engine's share."""

from pathlib import Path

import pytest
import torch

from models.info import ModelInfo
from runtime.config import KVCacheConfig, UnusableConfig
from runtime.kv_cache import budget
from runtime.kv_cache.budget import plan_blocks
from server.config import ModelConfig, ServerConfig
from server.processes.deployment import DeployedModel, Deployment

FREE_BYTES = 1000 * 2**20
BLOCK_BYTES = 2**20
PLENTY = 10**6


def plan(share: float, *, budget_mb: float | None = None, max_input_tokens: int = 64) -> int:
    return plan_blocks(
        KVCacheConfig(budget_mb=budget_mb),
        block_bytes=BLOCK_BYTES,
        weight_bytes=200 * 2**20,
        activation_bytes=100 * 2**20,
        max_sequences=PLENTY,
        max_input_tokens=max_input_tokens,
        device=torch.device("cpu"),
        share=share,
    )


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "find_free_bytes", lambda device: FREE_BYTES)


def test_shares_of_all_engines_fit_the_free_memory() -> None:
    """Each leaves room for its own activations; its weights are there already."""
    assert plan(1.0) == 900
    assert plan(0.25) == 150
    assert 4 * (plan(0.25) + 100) * BLOCK_BYTES <= FREE_BYTES


def test_configured_budget_is_not_shared() -> None:
    assert plan(0.25, budget_mb=500) == plan(1.0, budget_mb=500) == 200


def test_share_without_room_for_one_sequence_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnusableConfig, match=r"the memory that is free leaves 150\.0 MB .* Raise budget_mb"):
        plan(0.25, max_input_tokens=16 * 150)


def deploy(*models: tuple[str, dict[str, object]]) -> Deployment:
    configs = [
        ModelConfig.model_validate({"name": f"m{index}", "source": {"path": "."}, "engine": engine})
        for index, (_, engine) in enumerate(models)
    ]
    deployed = tuple(
        DeployedModel(index, config, Path("."), ModelInfo("X", task, 9, 1, 9, 9))
        for index, (config, (task, _)) in enumerate(zip(configs, models, strict=True))
    )
    return Deployment(ServerConfig(models=tuple(configs)), deployed, Path("."))


def test_share_counts_every_generating_engine_of_the_device() -> None:
    deployment = deploy(
        ("generate", {"replicas": 2}), ("generate", {}), ("embed", {"replicas": 5}), ("generate", {"device": "cuda"})
    )
    assert [deployment.share_memory(deployment.models[index]) for index in (0, 1, 3)] == [1 / 3, 1 / 3, 1]
