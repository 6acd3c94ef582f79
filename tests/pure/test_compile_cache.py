"""A model's file is another one as soon as anything is another that it depends on."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import compile_cache
from runtime.compile_cache import drop_unused, find_cache, read_choice, read_cpu, read_gpus
from runtime.config import EngineConfig

CPUINFO = """\
processor\t: {number}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: {model}
model name\t: AMD EPYC
stepping\t: 1
cpu MHz\t\t: {mhz}
flags\t\t: fpu avx2{flags}

"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory; and beside it kernels in place of ours."""
    directory = tmp_path / "model"
    (directory / "folder").mkdir(parents=True)
    (directory / "folder" / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "gemm.h").write_text("int n;")
    (tmp_path / "runtime" / "fuse.py").write_text("n = 1")
    (tmp_path / "quantized").write_bytes(b"scales")
    monkeypatch.setattr(compile_cache, "RUNTIME", tmp_path / "runtime")
    monkeypatch.setattr(compile_cache, "CODE", (tmp_path / "runtime",))
    return directory


CHANGED_FILES = [
    "model/model.safetensors",
    "model/folder/config.json",
    "runtime/gemm.h",
    "runtime/fuse.py",
    "quantized",
]


@pytest.mark.parametrize("changed", CHANGED_FILES)
def test_files(model: Path, changed: str) -> None:
    """Weights, settings, kernels, what makes programs, a calibration: their contents count, not their dates."""
    config = EngineConfig(quantization=model.parent / "quantized")
    path, file = find_cache(model, config), model.parent / changed
    file.touch()
    assert find_cache(model, config) == path
    file.write_bytes(b"other")
    assert find_cache(model, config) != path


@pytest.mark.parametrize(
    "options",
    [
        {"accuracy": "fast"},
        {"precision": "auto_per_bucket"},
        {"cpu_kernels": "torch"},
        {"device": "cuda"},
        {"memory_cap_mb": 100},
        {"kv_cache": {"dtype": "int8"}},
    ],
)
def test_settings(model: Path, options: dict[str, object]) -> None:
    assert find_cache(model, EngineConfig.model_validate(options)) != find_cache(model, EngineConfig())


def test_draft(model: Path) -> None:
    draft = model.parent / "model" / "folder"
    assert find_cache(model, EngineConfig(), others=[draft]) != find_cache(model, EngineConfig())


def test_large_files_are_not_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their size and date count instead."""
    monkeypatch.setattr(compile_cache, "LARGE_BYTES", 7)
    file = model / "model.safetensors"
    before, path = os.stat(file), find_cache(model, EngineConfig())
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_cache(model, EngineConfig()) == path
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert find_cache(model, EngineConfig()) != path


def test_what_nobody_starts_any_more_is_dropped(tmp_path: Path) -> None:
    """What belongs to a model stays as long as it, however long ago it was written."""
    for name, age_days in (("old.pt", 40), ("old.json", 31), ("new.pt", 29), ("new.costs", 90)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age_days * 86400,) * 2)
    drop_unused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.costs", "new.pt"]


def test_settings_that_change_no_engine(model: Path) -> None:
    assert find_cache(model, EngineConfig(replicas=2, pin_cores=False, share=2.0)) == find_cache(model, EngineConfig())


def test_threads_and_limits(model: Path) -> None:
    paths = {find_cache(model, EngineConfig(), threads, limit) for threads in (1, 2) for limit in (256, 512)}
    assert len(paths) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("find_compiler", lambda: "g++ 99"),
        ("version", lambda package: "99"),
        ("read_cpu", list),
        ("read_gpus", lambda: ["NVIDIA L4"]),
    ],
)
def test_machine(model: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Callable[..., object]) -> None:
    path = find_cache(model, EngineConfig())
    monkeypatch.setattr(compile_cache, name, value)
    assert find_cache(model, EngineConfig()) != path


def test_gpus_are_told_apart_by_their_models(tmp_path: Path) -> None:
    """Not by where they are plugged in."""
    assert read_gpus(tmp_path) == []
    for bus, name in (("0000:01:00.0", "NVIDIA L4"), ("0000:02:00.0", "NVIDIA A10")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 170\nBus Location: \t {bus}\n")
    assert read_gpus(tmp_path) == ["NVIDIA A10", "NVIDIA L4"]


def write_cpu(path: Path, *, model: int = 1, mhz: float = 2450.0, flags: str = "") -> list[str]:
    cores = [CPUINFO.format(number=number, model=model, mhz=mhz + number, flags=flags) for number in range(2)]
    path.write_text("".join(cores))
    return read_cpu(path)


def test_cpus_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """ "AMD EPYC" is all of them: it is the model's number and the instructions that say which."""
    found = write_cpu(tmp_path / "cpuinfo")
    assert len(found) == 6
    assert write_cpu(tmp_path / "cpuinfo", mhz=3000.0) == found
    assert write_cpu(tmp_path / "cpuinfo", model=17) != found
    assert write_cpu(tmp_path / "cpuinfo", flags=" avx512f") != found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"by_tokens": [[1]], "level": "fast"}', '{"by_tokens": [[64, "fp4"]], "level": "fast"}']
)
def test_broken_file_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "choice.json"
    assert read_choice(path) is None
    path.write_text(text)
    assert read_choice(path) is None


def test_devices_that_are_to_be_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them may be of another kind."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    path = find_cache(model, EngineConfig(device="cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert find_cache(model, EngineConfig(device="cuda")) != path
