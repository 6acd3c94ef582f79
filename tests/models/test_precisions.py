"""Every encoder in every precision, by the kernels of every instruction set: it starts, it is the model, and a request
alone gets the numbers that it gets in any batch."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from tiny_engines import BEST, PRECISIONS, ROUNDING, Captured, Find, allow, capture_model, find_tolerances, list_cases
from tiny_models import CONFIGS, FAMILIES, Ids, make_model, make_sequences, pack
from torch import Tensor

from runtime.batch import Batch
from runtime.capture import list_inputs
from runtime.config import UnusableConfig
from runtime.engine import Engine
from runtime.engines.transfer import to_tensors
from runtime.quantization.simulate import find_linears
from tests.tolerances import BORDER_TOLERANCES, ENCODER_TOLERANCES, SAME_ENGINE, check_close

SEQLENS = [1, 2, 15, 16, 17, 33, 1, 47, 48, 49, 64, 65, 3, 73]
"""Around the borders of tiles, of panels and of blocks of rows."""


def run(engine: Engine, ids: list[Ids], types: list[Ids]) -> npt.NDArray[np.float32]:
    return engine.run(pack(ids, types)).arrays["embeddings"]


@torch.no_grad()
def run_module(captured: Captured, batch: Batch, output: str = "embeddings") -> Tensor:
    inputs = to_tensors(batch, torch.device("cpu"))
    outputs: dict[str, Tensor] = captured.module(**{name: inputs[name] for name in list_inputs(captured.module)})
    return outputs[output]


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(CONFIGS, FAMILIES))
def test_every_precision(find_encoder: Find, name: str, kernels: str, precision: str) -> None:
    captured = find_encoder(name)
    engine = captured.build(kernels, precision)
    ids, types = make_sequences(captured.model, SEQLENS)
    together = run(engine, ids, types)
    check_close(
        together,
        run_module(captured, pack(ids, types)),
        tolerance=allow(find_tolerances(captured, ENCODER_TOLERANCES)[precision], kernels, precision),
    )
    turned = run(engine, ids[::-1], types[::-1])[::-1]
    alone = np.concatenate([run(engine, [each], [kinds]) for each, kinds in zip(ids, types, strict=True)])
    for others in (turned, alone):
        if kernels in ROUNDING:
            tolerance = (
                SAME_ENGINE
                if precision == "fp32"
                else allow(find_tolerances(captured, ENCODER_TOLERANCES)[precision], kernels, precision)
            )
            check_close(others, together, tolerance=tolerance)
        else:
            np.testing.assert_array_equal(others, together)
    assert engine.info.precision == precision and not engine.info.unplanned_ops


@pytest.fixture(scope="module")
def find_token_classifier(tmp_path_factory: pytest.TempPathFactory) -> Find:
    auto = transformers.AutoModelForTokenClassification
    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name), auto)))


def run_tokens(engine: Engine, ids: list[Ids], types: list[Ids]) -> list[npt.NDArray[np.float32]]:
    """Rows of each sequence."""
    rows = engine.run(pack(ids, types)).arrays["token_logits"]
    return np.split(rows, np.cumsum([len(each) for each in ids])[:-1])


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(CONFIGS, ["bert", "albert", "mpnet"]))
def test_every_precision_of_token_logits(find_token_classifier: Find, name: str, kernels: str, precision: str) -> None:
    """Nothing averages them: their head stays fp32, so that they are as near as what the encoder makes."""
    captured = find_token_classifier(name)
    engine = captured.build(kernels, precision)
    ids, types = make_sequences(captured.model, SEQLENS)
    together = run_tokens(engine, ids, types)
    expected = run_module(captured, pack(ids, types), "token_logits")
    check_close(
        np.concatenate(together),
        expected,
        tolerance=allow(find_tolerances(captured, BORDER_TOLERANCES)[precision], kernels, precision),
    )
    turned = run_tokens(engine, ids[::-1], types[::-1])[::-1]
    alone = [run_tokens(engine, [each], [kinds])[0] for each, kinds in zip(ids, types, strict=True)]
    for others in (turned, alone):
        if kernels in ROUNDING:
            tolerance = (
                SAME_ENGINE
                if precision == "fp32"
                else allow(find_tolerances(captured, BORDER_TOLERANCES)[precision], kernels, precision)
            )
            check_close(np.concatenate(others), np.concatenate(together), tolerance=tolerance)
        else:
            np.testing.assert_array_equal(np.concatenate(others), np.concatenate(together))
    assert engine.info.precision == precision and not engine.info.unplanned_ops
    assert str(engine.info.outputs[0].dtype) == "float32"


def test_heads_of_tokens_are_not_quantised(find_token_classifier: Find) -> None:
    names = find_linears(find_token_classifier("bert").graph_module)
    assert names and not [name for name in names if "head" in name]


@pytest.mark.parametrize("precision", ["auto", "auto_per_bucket"])
@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES[1:])])
def test_auto(find_encoder: Find, name: str, precision: str) -> None:
    """Where it may choose among all: whatever it takes, the numbers are those of the precision by its name."""
    engine = find_encoder(name).build(BEST, precision, has_bf16=True)
    assert engine.info.chosen is not None
    assert [each.precision for each in engine.info.chosen.candidates] == PRECISIONS
    ids, types = make_sequences(find_encoder(name).model, SEQLENS)
    named = find_encoder(name).build(BEST, engine.info.chosen.find(sum(SEQLENS)))
    np.testing.assert_array_equal(run(engine, ids, types), run(named, ids, types))


@pytest.mark.parametrize("kernels", dict.fromkeys(["torch", BEST]))
def test_fp16_is_refused_on_a_cpu(find_encoder: Find, kernels: str) -> None:
    with pytest.raises(UnusableConfig, match=r"engine\.precision fp16 .* Set precision to bf16, fp32 or auto"):
        find_encoder("bert").build(kernels, "fp16")
