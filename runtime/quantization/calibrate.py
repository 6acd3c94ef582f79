"""From statistics to choices: how far each linear's inputs are smoothed, and which linears stay in float.

Smoothing is SmoothQuant's (Xiao et al. 2023): columns of large inputs are divided, and the weight's columns multiplied,
before either is rounded. It differs in two things: an input's size is its root mean square and not its maximum, and the
exponent is chosen for each linear by the error of its output. Linears, and experts, go back to float only where the
whole model is not accurate enough without, in the order of what each adds to the error by itself.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from runtime.batch import Batch
from runtime.capture import find_num_features, is_paged
from runtime.engine import Progress
from runtime.kv_cache.examples import page_alone
from runtime.lazy_module import LazyWeight
from runtime.ops import embed_norm
from runtime.passes.rewriting import is_call, read, read_linear
from runtime.quantization.accuracy import BOUNDS, Accuracy, AgreesOn, Bound, measure_accuracy
from runtime.quantization.observe import InputStatistics, observe, random_batch
from runtime.quantization.scheme import ActivationMode, LinearScheme, Quantization, fingerprint_weights
from runtime.quantization.simulate import (
    SimulatedExperts,
    SimulatedLinear,
    compute_float,
    find_linears,
    linear_weights,
    list_weights,
    replace_linears,
    run_batches,
    simulate_experts,
    simulate_linear,
)

EXPONENTS = (0.4, 0.5, 0.6)
USUAL_EXPONENT = 0.5
FLOOR = 1e-3
"""Of the mean: columns that hardly ever carry anything are not blown up further."""


@dataclass(frozen=True, slots=True)
class Options:
    overflow_free: bool = True
    """Choose for CPUs without VNNI, whose weights are bounded; on others the same choices do better still."""
    activations: ActivationMode = "dynamic"
    agrees_on: AgreesOn = "neighbours"
    bound: Bound = BOUNDS["neighbours"]


@dataclass(frozen=True, slots=True)
class LinearReport:
    """One linear by itself, on the inputs FP32 gives it: |y_int8 - y| / |y|."""

    name: str
    shape: tuple[int, ...]
    """(out_features, in_features); of experts with their number in front."""
    error: float | None
    unsmoothed_error: float | None
    """None for experts, which are not smoothed and only measured in the whole model."""
    is_float: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    quantization: Quantization
    linears: tuple[LinearReport, ...]


def calibrate(
    graph_module: GraphModule,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    options: Options,
    progress: Progress,
) -> Calibration:
    """Choose by `batches`, measure on `held_out`. `graph_module` is that of `trace_linears`; it stays as it is."""
    observation = observe(graph_module, batches, progress)
    weights = linear_weights(graph_module)
    schemes, reports = choose_schemes(observation.inputs, weights, options, progress)
    linears = simulate_linears(weights, schemes, options.overflow_free)
    experts = simulate_experts(graph_module, overflow_free=options.overflow_free)
    trial = Trial(graph_module, batches, observation.output, linears, experts, options, progress)
    floats = choose_floats(trial)
    schemes = {name: replace(scheme, is_float=name in floats) for name, scheme in schemes.items()}
    schemes |= {name: LinearScheme(is_float=name in floats) for name in experts}
    expected = run_batches(graph_module, held_out, compute_float, progress, "FP32 on held-out texts")
    held_out_trial = replace(trial, batches=held_out, expected=expected)
    quantization = Quantization(
        schemes,
        fingerprint_weights(list_weights(graph_module)),
        options.activations,
        num_texts=observation.num_texts,
        num_tokens=observation.num_tokens,
        accuracy=held_out_trial.measure(trial.names - floats, "INT8 on held-out texts"),
    )
    reports = [replace(report, is_float=report.name in floats) for report in reports]
    reports += [report for name in experts for report in report_experts(name, experts[name], name in floats)]
    return Calibration(quantization, tuple(reports))


def report_experts(name: str, experts: SimulatedExperts, is_float: bool) -> Iterator[LinearReport]:
    for part, weight in (("", experts.up), (" (down)", experts.down)):
        yield LinearReport(name + part, tuple(weight.values.shape), None, None, is_float)


def choose_schemes(
    inputs: Mapping[str, InputStatistics], weights: Mapping[str, LazyWeight], options: Options, progress: Progress
) -> tuple[dict[str, LinearScheme], list[LinearReport]]:
    """For each linear the exponent, or no smoothing at all, that gives its output the least error."""
    schemes, reports = {}, []
    for index, (name, unread) in enumerate(weights.items()):
        progress("smoothing", index, len(weights))
        statistics, weight = inputs[name], unread.read()
        smooths = [None, *(smooth_columns(statistics.rms, weight, exponent) for exponent in EXPONENTS)]
        tried = [make_scheme(statistics, smooth, options.activations) for smooth in smooths]
        errors = [measure_linear(weight, statistics.rows, scheme, options.overflow_free) for scheme in tried]
        best = min(range(len(tried)), key=errors.__getitem__)
        schemes[name] = tried[best]
        reports.append(LinearReport(name, (weight.shape[0], weight.shape[1]), errors[best], errors[0]))
    progress("smoothing", len(weights), len(weights))
    return schemes, reports


def make_scheme(statistics: InputStatistics, smooth: Tensor | None, activations: ActivationMode) -> LinearScheme:
    """With a range of all that was seen, where ranges are fixed; narrower ones were tried and gained little."""
    if activations == "dynamic":
        return LinearScheme(smooth)
    low, high = (x if smooth is None else x / smooth for x in (statistics.low, statistics.high))
    return LinearScheme(smooth, static_range=(float(low.min()), float(high.max())))


def measure_linear(weight: Tensor, rows: Tensor, scheme: LinearScheme, overflow_free: bool) -> float:
    """|y_int8 - y| / |y| over `rows` [n, in_features]; y without its bias."""
    expected = functional.linear(rows, weight)
    found = simulate_linear(weight, scheme, overflow_free=overflow_free)(rows)
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))


def smooth_columns(rms: Tensor, weight: Tensor, exponent: float) -> Tensor:
    """What inputs are divided by, fp32 [in_features]: rms ** exponent / largest weight ** (1 - exponent).

    Scaled to a geometric mean of 1, which changes nothing but keeps numbers near those they were.
    """
    low, high = weight.detach().aminmax(dim=0)
    largest = torch.maximum(-low, high)
    smooth = keep_off_zero(rms) ** exponent / keep_off_zero(largest) ** (1 - exponent)
    return smooth / smooth.log().mean().exp()


def keep_off_zero(sizes: Tensor) -> Tensor:
    return sizes.clamp(min=max(float(sizes.mean()) * FLOOR, torch.finfo(torch.float32).eps))


def simulate_linears(
    weights: Mapping[str, LazyWeight], schemes: Mapping[str, LinearScheme], overflow_free: bool
) -> dict[str, SimulatedLinear]:
    return {
        name: simulate_linear(weight.read(), schemes[name], overflow_free=overflow_free)
        for name, weight in weights.items()
    }


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Runs texts with some of the linears and experts in INT8, against what FP32 has answered."""

    graph_module: GraphModule
    batches: Sequence[Batch]
    expected: Tensor
    linears: Mapping[str, SimulatedLinear]
    experts: Mapping[str, SimulatedExperts]
    options: Options
    progress: Progress

    @property
    def names(self) -> frozenset[str]:
        return frozenset([*self.linears, *self.experts])

    def measure(self, names: Collection[str], what: str) -> Accuracy:
        linears = {name: linear for name, linear in self.linears.items() if name in names}
        experts = {name: block for name, block in self.experts.items() if name in names}
        compute = replace_linears(linears)
        found = run_batches(self.graph_module, self.batches, compute, self.progress, what, experts)
        return measure_accuracy(found.numpy(), self.expected.numpy(), self.options.agrees_on)


def choose_floats(trial: Trial) -> frozenset[str]:
    """Those to leave in float: the fewest, of those that err most by themselves, that make the bound hold."""
    if trial.options.bound.holds(trial.measure(trial.names, "INT8 on calibration texts")):
        return frozenset()
    names = [*trial.linears, *trial.experts]
    errors = {name: trial.measure([name], f"INT8 in {name} alone").error for name in names}
    worst_first = sorted(errors, key=errors.__getitem__, reverse=True)

    def is_enough(count: int) -> bool:
        accuracy = trial.measure(worst_first[count:], f"INT8 in all but {count} linears")
        return trial.options.bound.holds(accuracy)

    count = bisect_left(range(1, len(worst_first)), True, key=is_enough) + 1
    return frozenset(worst_first[:count])


def smooth_blindly(graph_module: GraphModule) -> dict[str, LinearScheme]:
    """Schemes for a model without calibration: dynamic ranges, nothing in float, and smoothing where it can be guessed.

    That is for rows that come out of a norm: which of their columns are large, the norm's weight decides more than the
    text, so one batch of random tokens, or features, shows it. `graph_module` may be fused further than that of
    `trace_linears`.
    """
    batch = draw_batch(graph_module)
    if is_paged(graph_module):
        batch = page_alone(batch, num_blocks=1 + 16 * 2, every_token=True)
    observation = observe(graph_module, [batch], lambda *_: None, num_rows=0)
    weights = linear_weights(graph_module)
    schemes = {}
    for name, nodes in find_linears(graph_module).items():
        is_normed = all("norm" in str(read_linear(node).x.target) for node in nodes)
        rms = observation.inputs[name].rms
        schemes[name] = LinearScheme(smooth_columns(rms, weights[name].read(), USUAL_EXPONENT) if is_normed else None)
    return schemes


def draw_batch(graph_module: GraphModule) -> Batch:
    """16 sequences of 32 tokens each, or of rows of features where the graph reads those."""
    width = find_num_features(graph_module)
    batch = random_batch(1 if width else find_vocab_size(graph_module), num_seqs=16, seqlen=32)
    if not width:
        return batch
    features = np.random.default_rng(0).standard_normal((batch.num_tokens, width), np.float32)
    return replace(batch, arrays=batch.arrays | {"features": features})


def find_vocab_size(graph_module: GraphModule) -> int:
    """Rows of the table that `input_ids` looks up."""
    for node in graph_module.graph.nodes:
        if is_call(node, torch.ops.aten.embedding.default):
            tables, indices = [read(node).weight], [read(node).indices]
        elif is_call(node, embed_norm.OP):
            tables, indices = read(node).tables, read(node).indices
        else:
            continue
        for table, index in zip(tables, indices, strict=True):
            if index.name == "input_ids":
                return int(table.meta["val"].shape[0])
    raise AssertionError("An encoder looks its token ids up in a table. This is a bug.")
