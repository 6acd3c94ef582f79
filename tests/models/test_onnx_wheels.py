"""The wheel for GPUs installs on a machine without one, and computes by its CPU provider."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_model, make_sequences, pack, run_module

from models.load import load_model
from runtime.backends.onnx.backend import portable_backend
from runtime.backends.onnx.export import save_padded
from runtime.build import fuse
from runtime.config import EngineConfig
from tests.tolerances import check_close

RUN = """
import sys
import numpy as np
import onnxruntime
model, ids, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
ids = np.load(ids)
given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
np.save(out, session.run(["embeddings"], given)[0])
"""


@pytest.mark.slow
def test_the_gpu_wheel_without_a_gpu(tmp_path: Path) -> None:
    model = make_model("bert", tmp_path / "model")
    config = EngineConfig(kind="onnxruntime")
    graph_module = fuse(load_model(model.directory, model.info), config, portable_backend())
    save_padded(graph_module, tmp_path / "model.onnx")
    ids, types = make_sequences(model, [7, 7, 7])
    np.save(tmp_path / "ids.npy", np.stack(ids))
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "onnxruntime-gpu"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"onnxruntime-gpu cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    words = [str(tmp_path / name) for name in ("model.onnx", "ids.npy", "out.npy")]
    subprocess.run([str(python), "-c", RUN, *words], check=True)
    zeros = [np.zeros_like(each) for each in types]
    check_close(np.load(tmp_path / "out.npy"), run_module(model, pack(ids, zeros))["embeddings"])
