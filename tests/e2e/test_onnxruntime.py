"""`engine: {kind: onnxruntime}` from the outside: beside the planned engine in one server, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running_server import start_server

from server.config import ConfigError
from server.config_file import load_config
from tests.e2e.small_bert import make_small_bert
from tests.tolerances import TOLERANCES, check_close

TEXTS = ["word1 word2 word3", "word5", " ".join(f"word{index}" for index in range(50))]


def write(path: Path, directory: Path, engines: dict[str, dict[str, Any]]) -> Path:
    models = [
        {
            "name": name,
            "source": {"path": str(directory)},
            "engine": {"threads": 1, "warmup": False, **engine},
            "limits": {"max_batch_tokens": 128},
        }
        for name, engine in engines.items()
    ]
    path.write_text(json.dumps({"server": {"port": 0, "canary_interval_s": 0.5}, "models": models}))
    return path


@pytest.mark.slow
def test_both_engines_in_one_server(tmp_path: Path) -> None:
    directory = make_small_bert(tmp_path / "model")
    engines = {
        "ours": {"precision": "fp32", "cpu_kernels": "torch"},
        "theirs": {"kind": "onnxruntime", "precision": "fp32"},
    }
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    server = start_server(write(tmp_path / "both.yaml", directory, engines), environment=cache)
    try:
        server.wait_ready()
        found = {}
        for name in engines:
            status, body = server.embed(TEXTS, model=name)
            assert status == 200, body
            found[name] = np.array([item["embedding"] for item in json.loads(body)["data"]])
        check_close(found["theirs"], found["ours"], tolerance=TOLERANCES[torch.float32])
        (info,) = [
            model["replicas"][0]["info"]
            for model in json.loads(server.get("/info")[1])["models"]
            if model["name"] == "theirs"
        ]
        assert (info["kind"], info["kernels"], info["precision"]) == ("onnxruntime", "onnxruntime", "fp32")
        assert "engine     onnxruntime, fp32" in server.log
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"kind": "onnxruntime", "precision": "bf16"}, "has no operators for bf16. Set engine.precision to fp32"),
        ({"kind": "onnxruntime", "device": "cuda"}, "Name them in engine.onnxruntime.providers"),
        ({"kind": "onnxruntime", "cpu_kernels": "avx2"}, "leave device and cpu_kernels out"),
        ({"kind": "onnxruntime", "memory_cap_mb": 10}, "engine.memory_cap_mb is for kind planned"),
        ({"onnxruntime": {"spinning": True}}, "engine.onnxruntime is for kind onnxruntime"),
        ({"kind": "onnxruntime", "onnxruntime": {"optimisation": "all"}}, "engine.onnxruntime"),
    ],
)
def test_what_contradicts_itself(engine: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        load_config(write(tmp_path / "wrong.yaml", tmp_path, {"m": engine}))


@pytest.mark.slow
def test_a_provider_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    directory = make_small_bert(tmp_path / "model")
    providers = {"providers": [{"name": "NoSuchExecutionProvider"}]}
    engine = {"kind": "onnxruntime", "precision": "fp32", "onnxruntime": providers}
    config = write(tmp_path / "wrong.yaml", directory, {"m": engine})
    server = start_server(config, environment={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert server.process.wait(120) != 0
    assert "NoSuchExecutionProvider is not in the ONNX Runtime that is installed" in server.log
    assert "Traceback" not in server.log
