"""A directory with an ONNX file and no weights, from the start of a server to the answers of its routes."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_dirs import export, load_theirs
from sentence_dirs import build_tokenizer, make_base

from tests.e2e.running_server import RunningServer, start_server
from tests.tolerances import check_close

TEXTS = ["abc", "a b c d e f g h", "zy"]


def start(directory: Path, path: Path) -> RunningServer:
    model = {"name": "m", "source": {"path": str(directory)}, "engine": {"kind": "onnxruntime", "threads": 1}}
    path.write_text(json.dumps({"server": {"port": 0}, "models": [model]}))
    return start_server(path)


def post(server: RunningServer, path: str, body: object) -> tuple[int, Any]:
    data, headers = json.dumps(body).encode(), {"content-type": "application/json", "connection": "close"}
    status, text = server.send(urllib.request.Request(server.url + path, data, headers))
    return status, json.loads(text)


@pytest.mark.slow
def test_answers_and_what_is_said_of_the_file(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    make_base(directory)
    theirs = load_theirs(directory)
    export(theirs, directory / "onnx" / "model.onnx", ["sentence_embedding"])
    (directory / "model.safetensors").unlink()
    server = start(directory, tmp_path / "config.yaml")
    try:
        server.wait_ready()
        status, answer = post(server, "/v1/embeddings", {"model": "m", "input": TEXTS, "encoding_format": "float"})
        assert status == 200
        tokenizer = build_tokenizer()
        with torch.no_grad():
            rows = [theirs(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0] for text in TEXTS]
        expected = [torch.nn.functional.normalize(each.mean(0), dim=-1) for each in rows]
        check_close(np.array([item["embedding"] for item in answer["data"]]), torch.stack(expected))
        status, answer = post(server, "/embed_all", {"inputs": TEXTS})
        assert status == 422 and "tokens.token_embeddings" in answer["error"], answer
        assert "onnxruntime, as in the file (onnx/model.onnx), on cpu with onnxruntime kernels" in server.log
        assert "compiling" not in server.log
        (model,) = json.loads(server.get("/info")[1])["models"]
        assert model["replicas"][0]["info"]["precision"] == "as in the file"
    finally:
        server.stop()


@pytest.mark.slow
def test_a_file_that_cannot_be_served_ends_the_start(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    make_base(directory)
    (directory / "model.safetensors").unlink()
    (directory / "model.onnx").write_bytes(b"none")
    server = start(directory, tmp_path / "config.yaml")
    assert server.process.wait(60) == 1
    assert f"padless: engine.onnxruntime.file: {directory / 'model.onnx'} cannot be loaded" in server.log
    assert "Traceback" not in server.log
