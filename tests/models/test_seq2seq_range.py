"""Encoder-decoders whose sums leave fp16's range in either of their programs are refused when they are compiled."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TinyModel
from tiny_seq2seq import make_seq2seq

from models.load import load_model
from runtime import build
from runtime.backends.plain.table import plain_backend
from runtime.build import compile_model
from runtime.config import EngineConfig, UnusableConfig
from runtime.lazy_module import LazyModule
from runtime.limits import BatchLimits

LARGE = 1e7
"""Times the weights of a feed-forward block: what a layer adds is far over 65,504."""


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes fp16 where nobody refuses it."""
    backend = replace(plain_backend(torch.device("cpu")), keeps_linears=False)
    monkeypatch.setattr(build, "check_precision", lambda config: None)
    monkeypatch.setattr(build, "find_backend", lambda *_: backend)


def enlarge(module: LazyModule) -> LazyModule:
    names = [name for name in module.weights if "layers.0" in name and name.endswith("down.weight")]
    assert names
    weights = {name: module.weights[name].then(lambda values: values * LARGE) for name in names}
    return replace(module, weights={**module.weights, **weights})


def compile_in_fp16(model: TinyModel, spoilt: str) -> None:
    module = load_model(model.directory, model.info)
    assert isinstance(module, LazyModule) and module.encoder is not None and model.info.seq2seq is not None
    if spoilt == "decoder":
        module = enlarge(module)
    elif spoilt == "encoder":
        module = replace(module, encoder=enlarge(module.encoder))
    limits = BatchLimits(128, 8, model.info.seq2seq.max_target_tokens, 128, model.info.max_input_tokens)
    config = EngineConfig.model_validate({"precision": "fp16", "cpu_kernels": "torch"})
    compile_model(module, config, limits, lambda *_: None)


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("t5", "encoder"),
        pytest.param("t5", "decoder", marks=pytest.mark.slow),
        pytest.param("bart", "encoder", marks=pytest.mark.slow),
        pytest.param("whisper", "encoder", marks=pytest.mark.slow),
    ],
)
def test_either_program_is_tried(name: str, spoilt: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableConfig, match=r"engine\.precision fp16.*Set precision to bf16"):
        compile_in_fp16(make_seq2seq(name, tmp_path), spoilt)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_those_within_the_range_run_in_fp16(name: str, tmp_path: Path) -> None:
    compile_in_fp16(make_seq2seq(name, tmp_path), "neither")
