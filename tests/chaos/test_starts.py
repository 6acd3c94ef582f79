"""What a server finds when it starts: a cache folder it cannot write to, and weights that are not whole."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.e2e.running_server import WORDS, make_model_directory, start_server

pytestmark = pytest.mark.chaos


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a server with a small model that computes."""
    directory = make_model_directory(tmp_path / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **shape))
    model.save_pretrained(directory)
    path = tmp_path / "starts.yaml"
    engine = {"threads": 1, "precision": "fp32", "warmup": False}
    source = {"path": str(directory)}
    path.write_text(json.dumps({"server": {"port": 0}, "models": [{"name": "m", "source": source, "engine": engine}]}))
    return path


def test_cache_folder_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    """It is a file, which stops the superuser too: served all the same, by torch's kernels, and the log says why."""
    no_folder = tmp_path / "full"
    no_folder.write_text("")
    server = start_server(config, environment={"XDG_CACHE_HOME": str(no_folder)})
    server.wait_ready()
    status, text = server.embed(["word1 word2", "word3"], model="m")
    assert status == 200 and len(json.loads(text)["data"]) == 2
    assert server.stop() == 0
    assert "cannot be written" in server.log


def test_weights_that_are_not_whole(config: Path, tmp_path: Path) -> None:
    """Nothing is served, and nothing is tried for ever: the server ends, and says which file it is."""
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    server = start_server(config)
    assert server.process.wait(60) == 1
    assert str(weights) in server.log and "Traceback" not in server.log
