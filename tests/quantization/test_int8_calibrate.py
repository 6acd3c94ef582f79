"""Observing, smoothing and choosing on a tiny random BERT, against numbers computed in other ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from runtime.batch import Batch
from runtime.capture import constant
from runtime.lazy_module import LazyWeight
from runtime.passes.fuse_add_norm import fuse_add_norm
from runtime.passes.fuse_embed_norm import fuse_embed_norm
from runtime.quantization.accuracy import ON_SAMPLES, Accuracy, AgreesOn, Bound, measure_accuracy
from runtime.quantization.calibrate import (
    Calibration,
    Options,
    calibrate,
    choose_schemes,
    smooth_blindly,
    smooth_columns,
)
from runtime.quantization.observe import InputStatistics, Observation, observe, trace_linears
from runtime.quantization.scheme import LinearScheme, check_model
from runtime.quantization.simulate import (
    compute_float,
    find_linears,
    linear_weights,
    quantize_rows,
    run_batches,
    simulate_linear,
)
from tests.kernels.tiny_graphs import BERT_CONFIG, CPU, capture_body, random_batch, run_graph, tiny_bert
from tests.tolerances import check_close

BATCHES = [random_batch([5, 1, 9, 20], seed) for seed in range(4)]
HELD_OUT = [random_batch([7, 3, 12, 8, 2], seed) for seed in range(10, 16)]
LINEARS_PER_LAYER = 4
LOOSE, STRICT = Bound(agreement=0.5), Bound(agreement=0.99, cosine_p1=0.99999)


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def graph_module() -> GraphModule:
    return trace_linears(tiny_bert(), CPU)


@pytest.fixture(scope="module")
def observation(graph_module: GraphModule) -> Observation:
    return observe(graph_module, BATCHES, quiet)


def run_calibration(graph_module: GraphModule, options: Options) -> Calibration:
    return calibrate(graph_module, BATCHES, HELD_OUT, options, quiet)


class TestGraph:
    def test_linears_bear_the_names_of_fused_weights(self, graph_module: GraphModule) -> None:
        names = list(find_linears(graph_module))
        assert len(names) == LINEARS_PER_LAYER * BERT_CONFIG.num_layers
        assert names[0] == "encoder_stack_layers_0_attention_qkv_weight"
        assert "encoder.stack.layers.1.feed_forward.down.weight" in names

    def test_running_node_by_node_changes_nothing(self, graph_module: GraphModule) -> None:
        found = run_batches(graph_module, BATCHES, compute_float, quiet, "")
        check_close(found, torch.cat([run_graph(graph_module, batch) for batch in BATCHES]))

    def test_shared_weights_are_one_linear(self) -> None:
        shared = capture_body(lambda m, x, _: m.a(m.norm(m.a(x))))
        assert [len(nodes) for nodes in find_linears(shared).values()] == [2]
        assert observe(shared, BATCHES, quiet).inputs["a.weight"].num_rows == 2 * sum(b.num_tokens for b in BATCHES)


class TestObserve:
    def test_statistics_are_those_of_the_inputs(self, observation: Observation) -> None:
        """The first linear reads what the embeddings give, which the module computes by itself."""
        rows = torch.cat([embed(batch) for batch in BATCHES])
        statistics = observation.inputs["encoder_stack_layers_0_attention_qkv_weight"]
        assert statistics.num_rows == len(rows) == observation.num_tokens
        check_close(statistics.rms, rows.square().mean(0).sqrt())
        check_close(statistics.low, rows.amin(0))
        check_close(statistics.high, rows.amax(0))
        distances = (statistics.rows[:, None] - rows).abs().amax(-1)
        assert (distances.amin(1) < 1e-5).all()

    def test_samples_are_limited(self) -> None:
        statistics = InputStatistics()
        statistics.add(torch.randn(100, 3), num_samples=10)
        statistics.add(torch.randn(4, 3), num_samples=10)
        assert statistics.rows.shape == (14, 3) and statistics.num_rows == 104


@torch.inference_mode()
def embed(batch: Batch) -> Tensor:
    ids = (torch.from_numpy(batch.arrays[name]) for name in ("input_ids", "position_ids", "token_type_ids"))
    rows: Tensor = tiny_bert().encoder.embeddings(*ids)  # type: ignore[union-attr, operator]
    return rows


class TestSimulate:
    def test_rows_are_rounded_to_256_levels(self) -> None:
        x = torch.tensor([[-1.0, 0.0, 0.3, 4.1], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 5.1]])
        levels, step = quantize_rows(x, None)
        assert ((levels * step - x).abs() <= step / 2 + 1e-6).all()
        assert (levels.amax(1) - levels.amin(1) <= 255).all()
        assert step[:, 0].tolist() == pytest.approx([5.1 / 255, 1.0, 5.1 / 255])

    def test_fixed_range_cuts_what_is_outside(self) -> None:
        levels, step = quantize_rows(torch.tensor([[-9.0, 0.5, 9.0]]), (-1.0, 1.55))
        assert (levels * step)[0].tolist() == pytest.approx([-1.0, 0.5, 1.55], abs=0.006)

    def test_smoothing_cancels_but_for_rounding(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(30, 40, generator=generator), torch.randn(20, 40, generator=generator)
        for smooth in (None, torch.rand(40, generator=generator) + 0.5):
            found = simulate_linear(weight, LinearScheme(smooth), overflow_free=False)(x)
            assert (found - functional.linear(x, weight)).norm() < 0.02 * functional.linear(x, weight).norm()


class TestSmoothing:
    def test_large_columns_are_divided(self) -> None:
        rms, weight = torch.tensor([1.0, 100.0, 1.0, 0.0]), torch.ones(2, 4)
        smooth = smooth_columns(rms, weight, 0.5)
        assert float(smooth[1]) == pytest.approx(10 * float(smooth[0]), rel=1e-4)
        assert abs(float(smooth.log().mean())) < 1e-5
        assert (smooth > 0).all() and smooth.isfinite().all()

    def test_outliers_are_smoothed_away(self) -> None:
        """One column a hundred times the others, as norms of trained models make them."""
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(300, 64, generator=generator), torch.randn(32, 64, generator=generator)
        x[:, 5] *= 100
        statistics = InputStatistics()
        statistics.add(x, 300)
        schemes, (report,) = choose_schemes({"w": statistics}, {"w": LazyWeight.of(weight)}, Options(), quiet)
        assert schemes["w"].smooth is not None
        assert report.error < report.unsmoothed_error

    def test_smoothing_is_kept_only_where_it_helps(self, observation: Observation, graph_module: GraphModule) -> None:
        _, reports = choose_schemes(observation.inputs, linear_weights(graph_module), Options(), quiet)
        assert all(report.error <= report.unsmoothed_error for report in reports)

    @pytest.mark.parametrize("is_fused", [False, True])
    def test_blindly_where_rows_come_from_norms(self, is_fused: bool) -> None:
        graph_module = trace_linears(tiny_bert(), CPU)
        if is_fused:
            fuse_embed_norm(graph_module)
            fuse_add_norm(graph_module)
        schemes = smooth_blindly(graph_module)
        smoothed = {
            name.rpartition("_weight")[0] or name for name, scheme in schemes.items() if scheme.smooth is not None
        }
        assert len(schemes) == LINEARS_PER_LAYER * BERT_CONFIG.num_layers
        assert len(smoothed) == 2 * BERT_CONFIG.num_layers
        assert all("qkv" in name or "up" in name for name in smoothed)

    def test_blindly_where_features_come_in(self) -> None:
        """As into an encoder of speech, which has no table of words to draw from."""

        class Hearing(nn.Module):
            num_features = 6

            def __init__(self) -> None:
                super().__init__()
                self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)

            def forward(self, features: Tensor) -> dict[str, Tensor]:
                return {"rows": self.second(self.norm(self.first(features)))}

        schemes = smooth_blindly(trace_linears(Hearing().eval().requires_grad_(False), CPU))
        smoothed = {name: scheme.smooth is not None for name, scheme in schemes.items()}
        assert smoothed == {"first.weight": False, "second.weight": True}


class TestCalibrate:
    def test_nothing_stays_in_float_without_need(self, graph_module: GraphModule) -> None:
        calibration = run_calibration(graph_module, Options(bound=LOOSE))
        quantization = calibration.quantization
        assert quantization.linears.keys() == linear_weights(graph_module).keys()
        assert not any(scheme.is_float for scheme in quantization.linears.values())
        assert quantization.accuracy.num_texts == sum(batch.num_seqs for batch in HELD_OUT)
        assert quantization.accuracy.cosine_p1 > 0.99
        assert quantization.num_tokens == sum(batch.num_tokens for batch in BATCHES)
        check_model(quantization, linear_weights(graph_module))

    def test_linears_go_back_to_float_until_the_bound_holds(self, graph_module: GraphModule) -> None:
        calibration = run_calibration(graph_module, Options(bound=STRICT))
        floats = [name for name, scheme in calibration.quantization.linears.items() if scheme.is_float]
        assert floats == [report.name for report in calibration.linears if report.is_float]
        assert 0 < len(floats) <= len(calibration.linears)
        loose = run_calibration(graph_module, Options(bound=LOOSE)).quantization.accuracy
        assert calibration.quantization.accuracy.error < loose.error

    def test_an_impossible_bound_leaves_all_in_float(self, graph_module: GraphModule) -> None:
        calibration = run_calibration(graph_module, Options(bound=Bound(agreement=2.0)))
        assert all(scheme.is_float for scheme in calibration.quantization.linears.values())
        assert calibration.quantization.accuracy.error < 1e-6

    def test_static_ranges_hold_what_was_seen(self, graph_module: GraphModule, observation: Observation) -> None:
        calibration = run_calibration(graph_module, Options(activations="static", bound=LOOSE))
        for name, scheme in calibration.quantization.linears.items():
            rows = observation.inputs[name].rows / (1.0 if scheme.smooth is None else scheme.smooth)
            assert scheme.static_range is not None
            assert scheme.static_range[0] <= rows.min() and rows.max() <= scheme.static_range[1]
        assert calibration.quantization.accuracy.cosine_p1 > 0.98

    def test_the_graph_stays_as_it_is(self, graph_module: GraphModule) -> None:
        before = {name: weight.read().clone() for name, weight in linear_weights(graph_module).items()}
        code = str(graph_module.graph)
        run_calibration(graph_module, Options(bound=LOOSE))
        assert str(graph_module.graph) == code
        for name, nodes in find_linears(graph_module).items():
            assert torch.equal(constant(graph_module, nodes[0].args[1]), before[name])


class TestAccuracy:
    def test_of_equal_rows(self) -> None:
        rows = np.random.default_rng(0).standard_normal((30, 8), np.float32)
        accuracy = measure_accuracy(rows, rows, "neighbours")
        assert accuracy.cosine_min == pytest.approx(1) and accuracy.error == 0 and accuracy.agreement == 1

    def test_neighbours(self) -> None:
        """Twelve directions a degree apart, then one of them turned round: it loses all its neighbours but one."""
        angles = np.arange(12, dtype=np.float32) * np.pi / 180
        expected = np.stack([np.cos(angles), np.sin(angles)], 1)
        found = expected.copy()
        found[0] = -found[0]
        accuracy = measure_accuracy(found, expected, "neighbours")
        assert accuracy.cosine_min == pytest.approx(-1)
        assert 0.8 < accuracy.agreement < 1

    def test_labels(self) -> None:
        expected = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 1.0], [1.0, 3.0]], np.float32)
        found = np.array([[1.1, 2.0], [2.0, 1.1], [1.0, 3.0], [1.0, 3.0]], np.float32)
        assert measure_accuracy(found, expected, "labels").agreement == 0.75

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("agrees_on", ["neighbours", "labels"])
    def test_of_what_is_no_number(self, value: float, agrees_on: AgreesOn) -> None:
        """The worst there is, in numbers that survive being written as JSON."""
        expected = np.ones((3, 4), np.float32)
        accuracy = measure_accuracy(expected * np.float32(value), expected, agrees_on)
        assert not any(level[agrees_on].holds(accuracy) for level in ON_SAMPLES.values())
        assert np.isfinite([accuracy.error, accuracy.cosine_min, accuracy.cosine_p1, accuracy.cosine_median]).all()

    def test_a_lone_row_and_rows_of_nothing(self) -> None:
        """One has no neighbours, the other no direction: neither is an error."""
        lone = np.ones((1, 4), np.float32)
        assert measure_accuracy(lone, lone, "neighbours").agreement == 1
        assert measure_accuracy(0 * lone, 0 * lone, "neighbours").cosine_p1 == 0

    def test_bound(self) -> None:
        good = Accuracy(10, 0.01, 0.98, 0.995, 0.999, 0.96)
        bound = Bound(agreement=0.95, cosine_p1=0.99, error=0.02)
        assert bound.holds(good)
        assert not bound.holds(replace(good, cosine_p1=0.98))
        assert not bound.holds(replace(good, agreement=0.9))
        assert not bound.holds(replace(good, error=0.03))
