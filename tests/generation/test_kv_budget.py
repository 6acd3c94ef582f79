"""How many blocks a KV cache gets of a budget, and the budget of each model of a server."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.info import ModelDirectoryError, ModelInfo
from models.weight_files import count_numbers
from runtime.config import UnusableConfig
from runtime.kv_cache.budget import plan_blocks
from server.config import ConfigError, ModelConfig, ServerConfig
from server.processes import memory
from server.processes.deployment import DeployedModel, Deployment, load, save
from server.processes.memory import divide_memory, estimate_trial, estimate_weights
from server.processes.memory_process import read_free_bytes
from server.processes.opening import settle_engine

MB = 2**20
PLENTY = 10**6


def plan(budget_mb: float | None, *, max_sequences: int = PLENTY, max_input_tokens: int = 64, **kept_bytes: int) -> int:
    return plan_blocks(
        budget_mb,
        block_bytes=MB,
        weight_bytes=200 * MB,
        activation_bytes=100 * MB,
        max_sequences=max_sequences,
        max_input_tokens=max_input_tokens,
        **kept_bytes,
    )


def test_the_cache_gets_what_weights_and_activations_leave() -> None:
    assert plan(500) == 200


def test_no_more_than_all_sequences_could_use() -> None:
    assert plan(None, max_sequences=3) == plan(500, max_sequences=3) == 3 * 4 + 1


def test_budget_without_room_for_one_sequence_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnusableConfig, match=r"450\.0 MB 150\.0 MB are left .* Raise kv_cache.budget_mb") as refusal:
        plan(450, max_input_tokens=16 * 150)
    assert "cuda_graphs" not in str(refusal.value) and "engine.kind" not in str(refusal.value)


def test_what_is_kept_beside_activations_is_told_with_its_remedy() -> None:
    assert plan(500, graph_bytes=30 * MB, counter_bytes=20 * MB) == 150
    words = r"50\.0 MB are left .* 400\.0 MB of weights, activations and what is .* or engine\.kind to planned"
    with pytest.raises(UnusableConfig, match=words):
        plan(450, max_input_tokens=16 * 150, graph_bytes=60 * MB, counter_bytes=40 * MB)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A million numbers, 9/16 of them in two tables of 9 rows."""
    return save_tables(tmp_path, 2)


def save_tables(folder: Path, count: int) -> Path:
    tables = {f"b{index}": torch.zeros(9, MB // 16 // count, dtype=torch.bfloat16) for index in range(count)}
    others = MB - sum(table.numel() for table in tables.values())
    save_file({"a": torch.zeros(others)} | tables, folder / "model.safetensors")
    return folder


def deploy(directory: Path, *models: tuple[str, dict[str, object]]) -> Deployment:
    configs = [
        ModelConfig.model_validate({"name": f"m{index}", "source": {"path": str(directory)}, "engine": engine})
        for index, (_, engine) in enumerate(models)
    ]
    deployed = tuple(
        DeployedModel(index, config, directory, ModelInfo("X", task, 9, 1, 9, 9))
        for index, (config, (task, _)) in enumerate(zip(configs, models, strict=True))
    )
    return Deployment(ServerConfig(models=tuple(configs)), deployed, directory)


def test_every_engine_of_the_server_counts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 encoders that share 4 MB, two generators that do, and a budget of 30 leave 62 of 100. Engines that compute
    nothing need nothing."""
    monkeypatch.setattr(memory, "find_cpu_bytes", lambda: 100 * MB)
    monkeypatch.setattr(memory, "find_cuda_bytes", lambda indices: [44 * MB for _ in indices])
    deployment = deploy(
        directory,
        ("embed", {"replicas": 5, "precision": "fp32", "kv_cache": {"budget_mb": 10**6}}),
        ("generate", {"replicas": 2}),
        ("generate", {"kind": "null"}),
        ("generate", {"kv_cache": {"budget_mb": 30}}),
        ("generate", {"device": "cuda"}),
    )
    save(divide_memory(deployment))
    told = load(directory).models
    assert [model.budget_bytes for model in told] == [None, (4 + 31 // 2) * MB + MB // 2, None, 30 * MB, 40 * MB]
    assert [settle_engine(model, 0).kv_cache.budget_mb for model in told] == [10**6, 19.5, None, 30, 40]


def test_each_device_is_planned_for_itself(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the second one a generator of 4 MB stands beside another. Both of its replicas get what there is there."""
    free = {0: 104 * MB, 2: 48 * MB}
    monkeypatch.setattr(memory, "find_cuda_bytes", lambda indices: [free[index] for index in indices])
    deployment = deploy(
        directory,
        ("generate", {"device": "cuda", "devices": [2, 0]}),
        ("generate", {"device": "cuda", "devices": [2]}),
        ("generate", {"device": "cuda"}),
    )
    on_second, on_first = (4 + 0.9 * (48 - 8) / 2) * MB, (4 + 0.9 * (104 - 8) / 2) * MB
    told = divide_memory(deployment).models
    assert [model.budget_bytes for model in told] == [int(on_second), int(on_second), int(on_first)]
    assert [settle_engine(told[0], replica).device_names for replica in (0, 1)] == [("cuda:2",), ("cuda:0",)]


def test_budgets_that_do_not_fit_are_added_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_cpu_bytes", lambda: 100 * MB)
    deployment = deploy(directory, *2 * [("generate", {"kv_cache": {"budget_mb": 60}})])
    with pytest.raises(ConfigError, match=r"need 120\.0 MB: m0 1 x 60\.0 MB .*budget_mb of m0, m1"):
        divide_memory(deployment)


def test_estimated_weights(directory: Path) -> None:
    """By precision, with fp32 tables beside int8; who measures or uses several has them at once; a draft is more."""
    precisions = ["auto", "int8", "auto_per_bucket", "bf16"]
    engines: list[dict[str, object]] = [{"precision": each} for each in precisions]
    reference: dict[str, object] = {"kind": "reference", "precision": "fp32"}
    deployment = deploy(directory, *(("embed", engine) for engine in [*engines, reference]), ("generate", {}))
    int8 = MB + 4 * 9 * MB // 16
    assert [estimate_weights(model) for model in deployment.models] == [4 * MB, int8, 7 * MB, 2 * MB, 4 * MB, 4 * MB]
    assert estimate_trial(deployment.models[0]) == 7 * MB
    assert estimate_weights(replace(deployment.models[5], draft_directory=directory)) == 8 * MB


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp8", 1), ("int8_weights", 1), ("int4_weights", 0.6)])
def test_what_stays_in_16_bits_is_counted(precision: str, bytes_each: float, tmp_path: Path) -> None:
    """Tables, beside int8 heads that are tied to them but in fp8, and experts."""
    table, experts, others = 9 * 64, 4096, 8192
    tensors = {"head": torch.zeros(9, 64), "layer.experts.0.w1": torch.zeros(experts), "b": torch.zeros(others)}
    save_file(tensors, tmp_path / "model.safetensors")
    engine: dict[str, object] = {"device": "cuda", "precision": precision}
    (found,) = map(estimate_weights, deploy(tmp_path, ("generate", engine)).models)
    assert found == int(bytes_each * others + 2 * experts + (2 if precision == "fp8" else 3) * table)


def test_a_tied_head_is_packed_beside_its_table(tmp_path: Path) -> None:
    """By compiled kernels, of what generates; in int8 the table is there in fp32 as well, which is counted."""
    engines: list[dict[str, object]] = [{}, {"precision": "bf16"}, {"precision": "int8"}, {"device": "cuda"}]
    tasks = [("generate", engine) for engine in [*engines, {"kind": "reference"}]]
    *found, _ = map(estimate_weights, deploy(save_tables(tmp_path, 1), *tasks, ("embed", {})).models)
    table = 9 * MB // 16
    assert found == [4 * (MB + table), 2 * (MB + table), MB + 4 * table, 4 * MB, 4 * MB]


@pytest.mark.parametrize(("dtype", "count"), [("float16", 500), ("float32", 250), (None, 250)])
def test_pickles_are_counted_by_their_size(tmp_path: Path, dtype: str | None, count: int) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": dtype}))
    assert count_numbers(tmp_path) == count_numbers(tmp_path, num_rows=7) == count


def test_broken_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(10))
    with pytest.raises(ModelDirectoryError, match=r"model\.safetensors: cannot be read"):
        count_numbers(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_memory_of_a_machine_without_it() -> None:
    """Asked in a process of its own, which says why."""
    with pytest.raises(ConfigError, match=r"this torch finds no CUDA device\. Set device to cpu"):
        memory.find_cuda_bytes([0])


@pytest.mark.gpu
def test_cuda_memory() -> None:
    (found,) = memory.find_cuda_bytes([0])
    assert 0 < found <= torch.cuda.mem_get_info()[1]


def test_a_device_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (100 + index, 200))
    assert read_free_bytes([0, 1]) == [100, 101]
    with pytest.raises(UnusableConfig, match=r"engine\.devices names 2, and the last .* is 1\. Name those"):
        read_free_bytes([0, 2])
