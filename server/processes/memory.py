"""What memory there is, what engines want of it, and each model told its part: once, before any engine is started."""

import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.onnx_files import count_bytes
from models.weight_files import count_experts, count_numbers, count_only_matrix
from server.config import ConfigError
from server.processes.child import build_command, build_environment
from server.processes.deployment import DeployedModel, Deployment
from server.processes.memory_plan import Claim, plan_memory

WEIGHT_BYTES: Mapping[str, float] = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    "int8": 1,
    "fp8": 1,
    "int8_weights": 1,
    "int4_weights": 0.6,
}
"""Of each number, with the scales of groups; `auto` may come to fp32."""
TABLE_BYTES: Mapping[str, float] = {"int8": 4, "fp8": 1, "int8_weights": 2, "int4_weights": 2.4}
"""More for each number of tables of tokens: rows are looked up in fp32 beside int8, in 16 bits beside the others, and a
head that is tied to them multiplies by int8, but by 16 bits beside fp8."""
EXPERTS_BYTES: Mapping[str, float] = {"fp8": 1, "int8_weights": 1, "int4_weights": 1.4}
"""More for each number of experts, which stay in 16 bits there."""
SEVERAL_BYTES = 7
"""fp32, bf16 and int8 side by side, where each size of batch has its own, and where they are measured."""


def divide_memory(deployment: Deployment) -> Deployment:
    """With a budget for each model that keeps a cache. Raises ConfigError, ModelDirectoryError."""
    models = [model for model in deployment.models if model.config.engine.kind != "null"]
    claims = [claim for model in models for claim in make_claims(model)]
    budgets = plan_memory(claims, find_available_bytes({claim.device for claim in claims}))
    told: dict[str, int] = {}
    for claim, budget in zip(claims, budgets, strict=True):
        if budget is not None:  # replicas are alike: each gets what there is where there is least
            told[claim.model] = min(budget, told.get(claim.model, budget))
    return replace(
        deployment,
        models=tuple(replace(model, budget_bytes=told.get(model.config.name)) for model in deployment.models),
    )


def make_claims(model: DeployedModel) -> list[Claim]:
    """One on each of its devices. Raises ModelDirectoryError."""
    engine = model.config.engine
    devices, num_weight_bytes = engine.device_names, estimate_weights(model)
    has_cache = model.head.work.decodes
    budget_mb = engine.kv_cache.budget_mb if has_cache else None
    return [
        Claim(
            model.config.name,
            device,
            engine.replicas // len(devices),
            num_weight_bytes,
            has_cache=has_cache,
            budget_bytes=None if budget_mb is None else int(budget_mb * 2**20),
            shares_weights=engine.device == "cpu" and engine.kind == "planned",
        )
        for device in devices
    ]


def estimate_weights(model: DeployedModel) -> int:
    """Bytes in one engine, the draft model's included. Building it takes a layer more (`runtime.lazy_module`)."""
    if model.onnx_file is not None:
        return count_bytes(model.directory / model.onnx_file)
    engine, num_weights = model.config.engine, count_weights(model)
    if engine.kind == "reference":
        return int(WEIGHT_BYTES["fp32"] * num_weights)
    if engine.precision == "auto_per_bucket":
        return SEVERAL_BYTES * num_weights
    bytes_each = WEIGHT_BYTES[engine.named_precision or "fp32"]
    if engine.precision not in TABLE_BYTES:
        return int(bytes_each * (num_weights + count_tied_heads(model)))
    in_tables = TABLE_BYTES[engine.precision] * count_weights(model, num_rows=model.info.vocab_size)
    in_experts = EXPERTS_BYTES.get(engine.precision, 0) * sum(map(count_experts, list_folders(model)))
    return int(bytes_each * num_weights + in_tables + in_experts)


def count_tied_heads(model: DeployedModel) -> int:
    """Numbers of output heads that are tables of tokens as well: on CPUs they are packed beside them, as kernels read
    them. Raises ModelDirectoryError."""
    if not model.head.work.decodes or model.config.engine.device != "cpu":
        return 0
    folders = [model.text_directory, model.draft_directory]
    return sum(count_only_matrix(folder, model.info.vocab_size) for folder in folders if folder is not None)


def estimate_trial(model: DeployedModel) -> int:
    """Bytes in the process that measures precisions, which is alone."""
    return SEVERAL_BYTES * count_weights(model)


def count_weights(model: DeployedModel, num_rows: int | None = None) -> int:
    """Numbers; only those of matrices with so many rows if that is given. Raises ModelDirectoryError."""
    return sum(count_numbers(folder, num_rows) for folder in list_folders(model))


def list_folders(model: DeployedModel) -> list[Path]:
    """Where its weights are."""
    folders = [model.text_directory]
    folders += [model.directory / folder for kind, folder in model.info.modules if kind != "Normalize"]
    return folders if model.draft_directory is None else [*folders, model.draft_directory]


def find_available_bytes(devices: Collection[str]) -> dict[str, int]:
    """Of each, by its name as in `EngineConfig.device_names`. Raises ConfigError."""
    available = {"cpu": find_cpu_bytes()} if "cpu" in devices else {}
    indices = sorted(int(device.removeprefix("cuda:")) for device in devices if device != "cpu")
    if indices:
        found = find_cuda_bytes(indices)
        available |= {f"cuda:{index}": num_bytes for index, num_bytes in zip(indices, found, strict=True)}
    return available


def find_cpu_bytes(root: Path = Path("/")) -> int:
    """Of this machine, or of a container that gets less. What files in its cache take can be had back."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    path = root / "proc/meminfo"
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    group = root / "sys/fs/cgroup"
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        left = int(limit.read_text()) - int(used.read_text()) + find_cached_bytes(group / "memory.stat")
        available = min(available, max(left, 0))
    return available


def find_cached_bytes(path: Path) -> int:
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(("active_file ", "inactive_file ")))


def find_cuda_bytes(indices: Sequence[int]) -> list[int]:
    """Asked by a process of its own, because this one stays free of torch and of the devices. Raises ConfigError."""
    command = build_command("server.processes.memory_process", [str(index) for index in indices])
    asked = subprocess.run(command, env=build_environment(), capture_output=True, text=True, check=False)
    if asked.returncode:
        *_, reason = asked.stderr.strip().splitlines() or [f"status {asked.returncode}"]
        raise ConfigError(f"reading the memory of the GPU: {reason}")
    return [int(line) for line in asked.stdout.split()]
