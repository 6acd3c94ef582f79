"""Encoder-decoders as `padless graph` shows them, and as the memory plan counts them: with both programs."""

from typing import Any

import pytest
import torch
import transformers
from seq2seq_engines import build_seq2seq
from tiny_models import TinyModel

from models.info import read_info
from server.config import ModelConfig, SourceConfig
from server.processes.deployment import DeployedModel
from server.processes.graph_process import print_graph
from server.processes.memory import estimate_weights

SIZES: dict[str, Any] = {
    **{f"{stack}_{name}": 2 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    **{f"{stack}_ffn_dim": 128 for stack in ("encoder", "decoder")},
    "d_model": 64,
    "vocab_size": 500,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    directory = tmp_path_factory.mktemp("bart")
    torch.manual_seed(0)
    theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**SIZES))
    theirs.save_pretrained(directory)
    return TinyModel(directory, theirs, read_info(directory))


def deploy(model: TinyModel, precision: str) -> DeployedModel:
    limits = {"max_batch_tokens": 64, "max_batch_requests": 4}
    config = ModelConfig.model_validate(
        {"name": "m", "source": SourceConfig(path="x"), "engine": {"precision": precision}, "limits": limits}
    )
    return DeployedModel(0, config, model.directory, model.info)


def test_the_graph_has_both_programs(model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    print_graph(deploy(model, "fp32"))
    encoder, decoder = capsys.readouterr().out.split("\n=== decoder\n")
    assert encoder.startswith("=== encoder\n")
    assert "= padless.varlen_attention" in encoder and "= padless.store_kv" in encoder
    assert "source_table" in decoder and "source_table" not in encoder
    assert "= padless.paged_attention" in decoder and "= padless.paged_attention" not in encoder
    for program in (encoder, decoder):
        assert all(heading in program for heading in ("== capture", "== fuse_qkv", "== fuse_add_norm", "== plan"))
        assert "0 unplanned" in program.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("precision", "off"), [("fp32", 0.03), pytest.param("bf16", 0.05, marks=pytest.mark.slow), ("int8", 0.15)]
)
def test_the_memory_plan_counts_the_weights_of_both(model: TinyModel, precision: str, off: float) -> None:
    """A table that both look words up in, once, and the head that is tied to it. What is always fp32, as biases are,
    counts in a model as small as this."""
    engine = build_seq2seq(model, precision)
    assert estimate_weights(deploy(model, precision)) == pytest.approx(engine.info.weight_bytes, rel=off)
