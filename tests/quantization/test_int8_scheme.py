"""The calibration's file: what is saved is what is loaded, and other models' files are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime.config import UnusableConfig
from runtime.lazy_module import LazyWeight
from runtime.quantization.accuracy import Accuracy
from runtime.quantization.scheme import (
    LinearScheme,
    Quantization,
    check_model,
    fingerprint_weights,
    load_quantization,
    save_quantization,
)


def as_weights(values: dict[str, torch.Tensor]) -> dict[str, LazyWeight]:
    return {name: LazyWeight.of(value) for name, value in values.items()}


WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "b_weight": torch.ones(2, 2)}
QUANTIZATION = Quantization(
    linears={
        "a.weight": LinearScheme(torch.tensor([1.0, 2, 3, 4]), (-1.5, 2.25)),
        "b_weight": LinearScheme(is_float=True),
        "c": LinearScheme(),
    },
    fingerprint=fingerprint_weights(as_weights(WEIGHTS)),
    activations="static",
    num_texts=7,
    num_tokens=70,
    accuracy=Accuracy(5, 0.01, 0.9, 0.99, 0.999, 0.96, "labels"),
)


def test_round_trip(tmp_path: Path) -> None:
    save_quantization(tmp_path / "q.safetensors", QUANTIZATION)
    found = load_quantization(tmp_path / "q.safetensors")
    assert found.linears.keys() == QUANTIZATION.linears.keys()
    for name, scheme in QUANTIZATION.linears.items():
        loaded = found.linears[name].smooth
        assert scheme.smooth is None if loaded is None else torch.equal(loaded, scheme.smooth)
        assert found.linears[name].static_range == scheme.static_range
        assert found.linears[name].is_float == scheme.is_float
    for field in ("fingerprint", "activations", "num_texts", "num_tokens", "accuracy"):
        assert getattr(found, field) == getattr(QUANTIZATION, field)


def test_same_model_is_accepted() -> None:
    check_model(QUANTIZATION, as_weights(dict(reversed(WEIGHTS.items()))))


@pytest.mark.parametrize(
    "weights",
    [
        {"a.weight": WEIGHTS["a.weight"]},
        {**WEIGHTS, "a.weight": WEIGHTS["a.weight"] + 1e-6},
        {**WEIGHTS, "a.weight": WEIGHTS["a.weight"].view(4, 3)},
        {"other": WEIGHTS["a.weight"], "b_weight": WEIGHTS["b_weight"]},
    ],
)
def test_other_models_are_refused(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UnusableConfig, match=r"engine\.quantization.*another model.*padless quantize"):
        check_model(QUANTIZATION, as_weights(weights))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    missing, broken, foreign = (tmp_path / name for name in ("missing", "broken", "foreign"))
    broken.write_text("not safetensors")
    save_file({"x": torch.zeros(1)}, foreign)
    for path in (missing, broken, foreign):
        with pytest.raises(UnusableConfig, match=rf"engine\.quantization {path}.*padless quantize"):
            load_quantization(path)
