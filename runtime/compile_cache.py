"""The files that remember what a model was compiled to, named by a hash of everything that this depends on: the model
itself, and apart from it the choice of its precision.

None of it needs torch or the model's weights in memory, so that the supervisor can look before it starts anything.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter

from runtime.cache import cache_dir
from runtime.config import EngineConfig
from runtime.precision_choice import ChosenPrecision

RUNTIME = Path(__file__).parent
CODE = (RUNTIME, RUNTIME.parent / "models")
"""Whose Python makes programs out of models, and whose C++ the kernels are compiled from."""
KERNELS = ("*.cpp", "*.h")
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.onnx", "*.onnx_data", "*.onnx.data")
WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
"""Of ONNX Runtime."""
CPU_FACTS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
ARM_FACTS = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features")

LARGE_BYTES = 256 * 2**20
"""Files from here on count by their size and the time of their last change: to read them takes seconds."""
UNUSED_S = 30 * 24 * 3600.0

RECORD = TypeAdapter(ChosenPrecision)


@dataclass(frozen=True, slots=True)
class CompileCache:
    """Where a model and the choice of its precision are kept."""

    model: Path
    choice: Path


def find_cache(directory: Path, config: EngineConfig, *settled: object, others: Sequence[Path] = ()) -> CompileCache:
    """For the model in `directory`, with `others` of what is computed beside it. `settled`: what else decides how it is
    computed, threads and limits among it.

    Raises RuntimeError where there is no home to keep anything in.
    """
    causes = {
        "model": hash_files(find_files(directory, MODEL_FILES)),
        "others": [hash_files(find_files(other, MODEL_FILES)) for other in others],
        "calibration": hash_files([config.quantization] if config.quantization else []),
        "onnxruntime": describe_onnxruntime(config),
        "settings": (
            config.kind,
            config.device_names[0],
            config.precision,
            config.accuracy,
            config.cpu_kernels,
            config.memory_cap_mb,
        ),
        "cache": config.kv_cache.dtype,
        "settled": settled,
        **describe_machine(),
    }
    name = hashlib.sha256(repr(sorted(causes.items())).encode()).hexdigest()[:32]
    folder = cache_dir("models")
    return CompileCache(folder / f"{name}.pt", folder / f"{name}.json")


def describe_onnxruntime(config: EngineConfig) -> object:
    """What it is told, and which one it is: what a graph's steps take depends on both."""
    if config.kind != "onnxruntime":
        return None
    return config.onnxruntime.model_dump_json(), [find_version(name) for name in ("onnx", *WHEELS)]


def find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine() -> Mapping[str, object]:
    """What is the same for all models: our own code, what compiles and what runs it."""
    return {
        "code": hash_files(path for folder in CODE for path in find_files(folder, ("*.py",))),
        "kernels": hash_files(find_files(RUNTIME, KERNELS)),
        "compiler": find_compiler(),
        "torch": version("torch"),
        "cpu": (platform.machine(), read_cpu()),
        "gpus": (read_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
    }


def find_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.rglob(pattern))


def hash_files(paths: Iterable[Path]) -> str:
    """Of names and contents. One that cannot be read counts as empty: whoever needs it will say so."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with suppress(OSError), path.open("rb") as file:
            facts = os.stat(file.fileno())
            is_large = facts.st_size >= LARGE_BYTES
            known = f"{facts.st_size} {facts.st_mtime_ns}".encode()
            digest.update(known if is_large else hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def find_compiler() -> str | None:
    """The first line that the compiler of the kernels says of itself; None where there is none."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        return None
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


def read_cpu(path: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Of each kind of core here: what it is and which instructions it has. A name alone ("AMD EPYC") says neither."""
    if not path.exists():
        return [platform.processor()]
    facts = {line for line in path.read_text().splitlines() if line.partition("\t")[0].strip() in CPU_FACTS + ARM_FACTS}
    return sorted(facts)


def read_gpus(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The models of the devices that NVIDIA's driver has, as it names them."""
    lines = [line for path in folder.glob("*/information") for line in path.read_text().splitlines()]
    return sorted(line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))


def read_choice(path: Path) -> ChosenPrecision | None:
    """None where there is none that can be read."""
    try:
        return RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_choice(path: Path, chosen: ChosenPrecision) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_bytes(RECORD.dump_json(chosen, indent=1))
    written.replace(path)


def drop_unused(folder: Path) -> None:
    """Models that nobody has started for a month: most are of older code, and will never be found again."""
    used_s: dict[str, float] = {}
    paths = list(folder.glob("*"))
    for path in paths:  # a start touches the model alone, and what belongs to it has its name
        with suppress(OSError):
            used_s[path.stem] = max(path.stat().st_mtime, used_s.get(path.stem, 0.0))
    for path in paths:
        with suppress(OSError):
            if time.time() - used_s.get(path.stem, 0.0) > UNUSED_S:
                path.unlink()
