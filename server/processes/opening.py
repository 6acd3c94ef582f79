"""A model as it was compiled, opened as the engine of this process; and what its steps cost, measured once."""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from runtime.compiled import load_compiled
from runtime.config import EngineConfig
from runtime.engine import Engine, Progress
from runtime.limits import BatchLimits
from runtime.open import build_null, open_engine
from server.engine.calibration import calibrate
from server.engine.cost_model import CostModel
from server.engine.padded_calibration import calibrate_padded
from server.engine.padded_costs import PaddedCosts, StoredTable, load_table
from server.processes.deployment import DeployedModel
from server.processes.file_engine import open_file
from server.tasks.registry import list_outputs

Costs = CostModel | PaddedCosts
"""The latter of engines that pad."""


class Damaged(RuntimeError):
    """What was compiled cannot be read, and is gone; the next start makes it again."""


def open_model(model: DeployedModel, replica: int, progress: Progress) -> Engine:
    """Raises Damaged, UnusableConfig, ModelDirectoryError."""
    config, limits = settle_engine(model, replica), find_limits(model)
    if config.kind == "null":
        return build_null(list_outputs([model.info, *(head.info for head in model.heads)]), config, limits, replica)
    if model.onnx_file is not None:
        return open_file(model, config, limits)
    assert model.compiled is not None, "Only what was compiled can be opened. This is a bug."
    compiled = load_compiled(model.compiled)
    if compiled is None:
        model.compiled.unlink(missing_ok=True)
        raise Damaged(f"{model.compiled} cannot be read")
    return open_engine(compiled, config, limits, progress)


def find_limits(model: DeployedModel) -> BatchLimits:
    limits, target = model.config.limits, model.info.seq2seq
    most = (limits.max_batch_tokens, limits.max_batch_requests)
    if target is None:
        return BatchLimits(*most, model.max_input_tokens, count_logits(model))
    return BatchLimits(*most, target.max_target_tokens, count_logits(model), model.max_input_tokens)


def settle_engine(model: DeployedModel, replica: int) -> EngineConfig:
    """What is configured, with the device, the threads and the memory that the supervisor has settled."""
    config = model.config.engine.keep_device(replica).model_copy(update={"threads": model.threads})
    if model.budget_bytes is None:
        return config
    kv_cache = config.kv_cache.model_copy(update={"budget_mb": model.budget_bytes / 2**20})
    return config.model_copy(update={"kv_cache": kv_cache})


def count_logits(model: DeployedModel) -> int:
    """Rows of logits of a step: of every sequence the next token, and as many as are guessed ahead."""
    if not model.head.work.decodes:
        return 0
    limits, speculative = model.config.limits, model.config.speculative
    num_drafts = 0 if speculative is None else speculative.num_tokens
    return min(limits.max_batch_requests * (1 + num_drafts), limits.max_batch_tokens)


def find_costs(model: DeployedModel, engine: Engine, kept: Path | None, progress: Progress) -> Costs:
    """As they were measured when the model was compiled, at an earlier start, or now. `kept`: what they are beside."""
    known = None if kept is None else load_costs(kept)
    if known is not None and isinstance(known, PaddedCosts) == engine.info.pads:
        return known
    found = measure_costs(model, engine, progress)
    if kept is not None:
        with suppress(OSError):
            save_costs(found, kept)
    return found


def measure_costs(model: DeployedModel, engine: Engine, progress: Progress) -> Costs:
    limits = model.config.limits
    measure = calibrate_padded if engine.info.pads else calibrate
    return measure(
        engine,
        max_batch_tokens=min(limits.max_batch_tokens, engine.info.max_batch_tokens),
        max_batch_requests=limits.max_batch_requests,
        max_input_tokens=model.max_total_tokens,
        progress=progress,
    )


def cost_path(compiled: Path) -> Path:
    return compiled.with_suffix(".costs")


def save_costs(costs: Costs, compiled: Path) -> None:
    """Beside the model, whole or not at all: three numbers, or a table. Raises OSError."""
    stored: StoredTable | tuple[float, float, float]
    if isinstance(costs, PaddedCosts):
        stored = costs.table.dump()
    else:
        stored = (costs.fixed_s, costs.per_token_s, costs.per_square_s)
    path = cost_path(compiled)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_bytes(msgspec.json.encode(stored))
    written.replace(path)


def load_costs(compiled: Path) -> Costs | None:
    try:
        stored = msgspec.json.decode(cost_path(compiled).read_bytes(), type=tuple[float, float, float] | StoredTable)
    except (OSError, msgspec.DecodeError):
        return None
    return CostModel(*stored) if isinstance(stored, tuple) else PaddedCosts(load_table(stored), is_measured=True)
