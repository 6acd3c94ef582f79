"""Engines over tiny models in every precision, by the kernels of every instruction set: each model is captured once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
import torch
from paging import Steps, draw_tables, make_step
from tiny_models import Ids, TinyModel, pack
from torch.fx import GraphModule

from models.decoder_layers import Decoder
from models.experts import ExpertsFeedForward
from models.heads import TextModel
from models.load import load_model
from models.rotary_layers import GatedFeedForward
from runtime import build, open
from runtime.capture import capture
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.engines.decoder import DecoderEngine
from runtime.limits import BatchLimits
from runtime.passes import pipeline
from tests.kernels.emulated import COMPILED, load_compiled
from tests.kernels.kernel_cases import CONFIGURABLE, find_backend
from tests.tolerances import ENCODER_TOLERANCES, Tolerance, check_close

PRECISIONS = ["fp32", "bf16", "int8"]
"""All that `auto` may choose on any CPU."""
BEST = CONFIGURABLE[1] if len(CONFIGURABLE) > 1 else "torch"
"""The kernels that `auto` takes here."""
ONNX = "onnxruntime"
"""In place of kernels: the same graph as ONNX Runtime computes it."""
ROUNDING = ("torch", ONNX)
"""By these a text's numbers depend on its batch-mates, as far as rounding goes."""


def list_cases(names: Collection[str], often: Sequence[str], in_int8: Collection[str] = ()) -> list[Any]:
    """Models by kernels by precision. Slow are all but the first of `often` with any kernels that this CPU has, the
    others with the best ones in one precision each, by turns, and `in_int8` with these in that. The instruction sets
    that it lacks are for `often` only, and slow. ONNX Runtime computes the first three of
    `often` in fp32, and the first in int8."""
    cases: list[Any] = []
    lacking = [case.values[0] for case in COMPILED if not isinstance(case, str)]
    turns = {name: PRECISIONS[place % len(PRECISIONS)] for place, name in enumerate(often)}
    turns |= dict.fromkeys(in_int8, "int8")
    for name in names:
        for kernels in [*CONFIGURABLE, *(lacking if name in often else [])]:
            quick = PRECISIONS if name == often[0] else [turns[name]] if name in turns and kernels == BEST else []
            is_there = kernels in CONFIGURABLE
            cases += [make_case(name, kernels, precision, is_there and precision in quick) for precision in PRECISIONS]
        cases += [make_case(name, ONNX, "fp32", name in often[:3]), make_case(name, ONNX, "int8", name == often[0])]
    return cases


def make_case(name: str, kernels: object, precision: str, is_quick: bool) -> Any:
    marks = [] if is_quick else [pytest.mark.slow]
    return pytest.param(name, kernels, precision, marks=marks, id=f"{name}-{kernels}-{precision}")


@dataclass(frozen=True)
class Captured:
    """A model, and its graph, which every engine gets a copy of."""

    model: TinyModel
    module: TextModel | Decoder
    graph_module: GraphModule

    def build(self, kernels: str, precision: str, *, has_bf16: bool = False, **options: object) -> Engine:
        """An engine of one thread, warm. `has_bf16`: what `auto` thinks of this CPU."""
        limits = BatchLimits(
            max_batch_tokens=2048,
            max_batch_requests=64,
            max_input_tokens=self.model.info.max_input_tokens,
            max_batch_logits=1024 if isinstance(self.module, Decoder) else 0,
        )
        kind = "planned" if kernels != ONNX else ONNX
        config = EngineConfig.model_validate({"kind": kind, "precision": precision, "threads": 1} | options)
        if kernels != ONNX:
            find_backend(kernels)  # the test is skipped where there is no compiler
        with (
            patch.object(build, "capture_module", side_effect=lambda *_: build.copy_graph(self.graph_module)) as shared,
            patch.object(open, "load_library", lambda *_: None if kernels in ROUNDING else load_compiled(kernels)),
            patch.object(pipeline, "has_cpu_bf16", lambda: has_bf16),
        ):
            engine = build.build_engine(self.module, config, limits, lambda *_: None)
        shared.assert_called()
        engine.warmup(lambda *_: None)
        return engine


def find_tolerances(captured: Captured, tolerances: Mapping[str, Tolerance]) -> dict[str, Tolerance]:
    """Gated feed-forward blocks multiply two rounded numbers, and few of their products are large: twice as much is
    allowed of what is rounded. Measured: half as much again. Experts are as others in bf16 (7e-3 and 3e-2); in int8,
    whose rounding chooses others for a few tokens, 7.8e-2 and 4.6e-1 were measured."""
    kinds = {type(module) for module in captured.module.modules()}
    rounded = {"bf16", "int8"} if GatedFeedForward in kinds else {"int8"} if ExpertsFeedForward in kinds else set()
    return {name: each.times(2 if name in rounded else 1) for name, each in tolerances.items()}


def allow(tolerance: Tolerance, kernels: str, precision: str) -> Tolerance:
    """ONNX Runtime's int8 rows have ranges as far below 0 as above, which costs up to a bit: half as much again is
    allowed. Measured: up to a third."""
    return tolerance.times(1.5 if (kernels, precision) == (ONNX, "int8") else 1)


def check_planned(captured: Captured, precision: str, ids: list[Ids], types: list[Ids], expected: object) -> None:
    """By the best kernels: embeddings as expected, nothing of them computed outside of the plan, and a text's the same
    in any batch, bit for bit."""
    engine = captured.build(BEST, precision)
    assert engine.info.precision == precision and not engine.info.unplanned_ops
    together = engine.run(pack(ids, types)).arrays["embeddings"].copy()
    check_close(together, expected, tolerance=find_tolerances(captured, ENCODER_TOLERANCES)[precision])
    if BEST != "torch":
        np.testing.assert_array_equal(run_alone(engine, ids, types), together)
    if precision != "bf16":
        check_onnx(captured, precision, ids, types, expected)


def check_onnx(captured: Captured, precision: str, ids: list[Ids], types: list[Ids], expected: object) -> None:
    """The same by ONNX Runtime, where a text alone is as in a batch but for rounding."""
    engine = captured.build(ONNX, precision)
    tolerance = allow(find_tolerances(captured, ENCODER_TOLERANCES)[precision], ONNX, precision)
    together = engine.run(pack(ids, types)).arrays["embeddings"].copy()
    check_close(together, expected, tolerance=tolerance, what=ONNX)
    check_close(run_alone(engine, ids, types), together, tolerance=tolerance, what=ONNX)


def run_alone(engine: Engine, ids: list[Ids], types: list[Ids]) -> npt.NDArray[np.float32]:
    alone = [
        engine.run(pack([text], [kinds])).arrays["embeddings"].copy() for text, kinds in zip(ids, types, strict=True)
    ]
    return np.concatenate(alone)


Find = Callable[[str], Captured]
"""Made and captured when a name is asked for the first time."""


def capture_model(make: Callable[[], TinyModel]) -> Captured:
    model = make()
    module = load_model(model.directory, model.info, model.heads).fill()
    graph_module = capture(load_model(model.directory, model.info, model.heads), torch.device("cpu"))
    return Captured(model, module, graph_module)


def compute_rows(engine: Engine, ids: Sequence[Ids], steps: Steps) -> npt.NDArray[np.float32]:
    """An engine's logits after every token, in the order of `ids`. What its cache held before must not matter."""
    assert isinstance(engine, DecoderEngine)
    tables = draw_tables([len(sequence) for sequence in ids], seed=len(steps))
    done = [0] * len(ids)
    found: list[list[npt.NDArray[np.float32]]] = [[] for _ in ids]
    for counts in steps:
        batch = make_step(ids, tables, done, counts)
        logits = engine.inner.compute(batch, kv_cache=engine.kv_cache)["logits"].numpy().copy()
        active = [index for index, count in enumerate(counts) if count]
        for index, rows in zip(active, np.split(logits, batch.cu_seqlens[1:-1]), strict=True):
            found[index].append(rows)
            done[index] += counts[index]
    return np.concatenate([rows for parts in found for rows in parts])
