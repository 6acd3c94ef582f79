"""Models whose sums leave fp16's range are told of when they are compiled, and `auto` takes fp32 for them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn

from runtime import build, precision_trial
from runtime.backends.plain.table import plain_backend
from runtime.build import compile_model
from runtime.config import EngineConfig, UnusableConfig
from runtime.limits import BatchLimits
from runtime.passes.pipeline import choose_precision
from tests.kernels.tiny_graphs import CPU, tiny_bert, tiny_llama

LIMITS = BatchLimits(max_batch_tokens=32, max_batch_requests=4, max_input_tokens=16, max_batch_logits=4)
LARGE = 1e7
"""Times the weights of the last linear layer: what a layer adds is far over 65,504."""


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes fp16 where nobody refuses it, and is taken for a device without bf16."""
    monkeypatch.setattr(build, "check_precision", lambda config: None)
    backend = replace(plain_backend(CPU), keeps_linears=False)
    monkeypatch.setattr(build, "find_backend", lambda *_: backend)
    candidates = [choose_precision(name, backend) for name in ("fp32", "fp16")]
    monkeypatch.setattr(build, "list_candidates", lambda backend: candidates)


def make_large(make: Callable[[], nn.Module]) -> nn.Module:
    module = make()
    for name, parameter in module.named_parameters():
        if "down.weight" in name:
            parameter.data *= LARGE
    return module


def compile_in(precision: str, module: nn.Module) -> str:
    config = EngineConfig.model_validate({"precision": precision, "cpu_kernels": "torch"})
    (used,) = compile_model(module, config, LIMITS, lambda *_: None).programs
    return used


@pytest.mark.parametrize("make", [tiny_llama, pytest.param(tiny_bert, marks=pytest.mark.slow)])
def test_configured_fp16_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnusableConfig, match=r"engine\.precision fp16.*Set precision to bf16"):
        compile_in("fp16", make_large(make))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_models_within_the_range_run_in_fp16(make: Callable[[], nn.Module]) -> None:
    assert compile_in("fp16", make()) == "fp16"


@pytest.mark.slow
@pytest.mark.parametrize(("is_large", "precision"), [(True, "fp32"), (False, "fp16")])
def test_auto_takes_fp16_where_it_is_faster_and_has_the_range(
    is_large: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_trial, "time_engines", lambda *_: [{"fp32": 2.0, "fp16": 1.0}])
    assert compile_in("auto", make_large(tiny_bert) if is_large else tiny_bert()) == precision
