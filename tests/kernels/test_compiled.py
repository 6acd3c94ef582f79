"""A compiled model on disk is the model in memory: the same results, bit for bit, from weights that are mapped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runtime import build
from runtime.backends.plain.table import plain_backend
from runtime.build import compile_model
from runtime.compiled import CompiledModel, load_compiled, save_compiled
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.kv_cache.examples import page_alone
from runtime.lazy_module import DraftModel
from runtime.limits import BatchLimits
from runtime.open import open_engine
from runtime.precision_choice import ChosenPrecision
from tests.kernels.kernel_cases import CONFIGURABLE
from tests.kernels.tiny_graphs import MAX_POSITIONS, captured_once, random_batch, tiny_bert, tiny_llama

LIMITS = BatchLimits(max_batch_tokens=256, max_batch_requests=16, max_input_tokens=MAX_POSITIONS)
PER_BUCKET = ChosenPrecision(((16, "fp32"), (512, "int8")), "fast", problem="it was told to")


def compile_tiny(
    make: Callable[[], nn.Module],
    config: EngineConfig,
    draft: DraftModel | None = None,
    chosen: ChosenPrecision | None = None,
) -> CompiledModel:
    limits = LIMITS if make is tiny_bert else BatchLimits(256, 16, MAX_POSITIONS, 16)
    with captured_once(make):
        return compile_model(make(), config, limits, lambda *_: None, draft, chosen)


def check_round_trip(compiled: CompiledModel, config: EngineConfig, folder: Path) -> CompiledModel:
    save_compiled(compiled, folder / "model.pt")
    found = load_compiled(folder / "model.pt")
    assert found is not None
    limits = LIMITS if compiled.kv_layout is None else BatchLimits(256, 16, MAX_POSITIONS, 16)
    engines = [open_engine(each, config, limits, lambda *_: None) for each in (compiled, found)]
    for seqlens in ([5, 1, 9], [1], [70, 3]):
        first, second = (run(engine, seqlens) for engine in engines)
        for name, rows in first.items():
            np.testing.assert_array_equal(second[name], rows)
    assert engines[0].info == engines[1].info
    return found


def run(engine: Engine, seqlens: list[int]) -> dict[str, np.ndarray]:
    batch = random_batch(seqlens)
    if engine.info.num_blocks:
        batch = page_alone(batch, num_blocks=engine.info.num_blocks)
    output = engine.run(batch)
    return dict(output.arrays) | ({} if output.tokens is None else {"tokens": output.tokens.token_ids})


@pytest.mark.parametrize("kernels", CONFIGURABLE)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_encoder(precision: str, kernels: str, tmp_path: Path) -> None:
    config = EngineConfig.model_validate({"precision": precision, "cpu_kernels": kernels, "threads": 1})
    check_round_trip(compile_tiny(tiny_bert, config), config, tmp_path)


def test_fp8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a GPU."""
    backend = replace(plain_backend(torch.device("cpu")), keeps_linears=False)
    monkeypatch.setattr(build, "check_precision", lambda config: None)
    monkeypatch.setattr(build, "find_backend", lambda *_: backend)
    config = EngineConfig(precision="fp8", cpu_kernels="torch", threads=1)
    found = check_round_trip(compile_tiny(tiny_bert, config), config, tmp_path)
    assert torch.float8_e4m3fn in {value.dtype for value in found.only.program.constants.values()}


def test_encoder_with_a_precision_for_each_size(tmp_path: Path) -> None:
    config = EngineConfig(precision="auto_per_bucket", threads=1)
    found = check_round_trip(compile_tiny(tiny_bert, config, chosen=PER_BUCKET), config, tmp_path)
    assert list(found.programs) == ["fp32", "int8"] and found.chosen == PER_BUCKET


def test_generator_with_a_draft(tmp_path: Path) -> None:
    config = EngineConfig(precision="int8", threads=1)
    found = check_round_trip(compile_tiny(tiny_llama, config, DraftModel(tiny_llama(), 3)), config, tmp_path)
    assert found.num_drafts == 3 and found.draft is not None


def test_weights_are_mapped(tmp_path: Path) -> None:
    """Not read: what several engines map is in memory once."""
    config = EngineConfig(precision="fp32", threads=1)
    save_compiled(compile_tiny(tiny_bert, config), tmp_path / "model.pt")
    found = load_compiled(tmp_path / "model.pt")
    assert found is not None
    assert str(tmp_path / "model.pt") in Path("/proc/self/maps").read_text()
    weights = [value for value in found.only.program.constants.values() if value.numel() > 100]
    assert weights and all(isinstance(weight, torch.Tensor) for weight in weights)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_what_is_no_model_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert load_compiled(path) is None
    path.write_bytes(content)
    assert load_compiled(path) is None


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    config = EngineConfig(precision="fp32", threads=1)
    compiled, folder = compile_tiny(tiny_bert, config), tmp_path / "model.pt"
    folder.mkdir()  # the last step, the renaming, fails
    (folder / "file").write_text("")
    with pytest.raises(OSError):
        save_compiled(compiled, folder)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("kernels", CONFIGURABLE)
def test_arrays_that_do_not_lie_dense(kernels: str) -> None:
    """Every second number of an array: kernels read addresses, and took the numbers between for their input."""
    config = EngineConfig.model_validate({"precision": "fp32", "cpu_kernels": kernels, "threads": 1})
    engine = open_engine(compile_tiny(tiny_bert, config), config, LIMITS, lambda *_: None)
    batch = random_batch([5, 1, 9])
    spread = {name: np.repeat(array, 2)[::2] for name, array in batch.arrays.items()}
    expected, found = engine.run(batch), engine.run(replace(batch, arrays=spread))
    for name, rows in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], rows)
