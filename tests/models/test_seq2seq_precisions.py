"""Encoder-decoders as engines run them, in every precision: both programs planned, and alone as in any batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from paging import draw_tables, make_step, whole
from seq2seq_engines import build_seq2seq
from seq2seq_steps import lay_sources, load_pair, place_sources
from tiny_decoders import make_ids
from tiny_engines import ONNX, PRECISIONS, ROUNDING, allow
from tiny_models import Ids
from tiny_seq2seq import CONFIGS, make_seq2seq

from runtime import build
from runtime.backends.plain.table import plain_backend
from runtime.batch import Sources
from runtime.config import Precision
from runtime.engines.decoder import DecoderEngine
from tests.quantization.rounded_layers import KINDS
from tests.tolerances import DECODER_TOLERANCES, check_close

SOURCE_LENGTHS = [15, 16, 33, 1, 40]
TARGET_LENGTHS = [17, 33, 5, 16, 1]
GATED = ("mt5", "t5-gated", "umt5")
"""They multiply two rounded numbers, and twice as much is allowed them. Measured in mT5: 4.2e-2 and 4.5e-1 in bf16,
1.4e-1 and 1.2 in int8."""


FEWER = {"fp8": torch.float8_e4m3fn, "int8_weights": torch.int8, "int4_weights": torch.uint8}
"""What weights become."""


def compute_rows(engine: DecoderEngine, sources: Sequence[Any], targets: Sequence[Ids]) -> npt.NDArray[np.float32]:
    """Logits after every token of every target, of sources that are encoded at once."""
    tables = draw_tables([len(each) for each in (*sources, *targets)])
    source_tables, target_tables = tables[: len(sources)], tables[len(sources) :]
    engine.encode(place_sources(sources, source_tables))
    laid = lay_sources(source_tables, [len(source) for source in sources])
    step = make_step(targets, target_tables, [0] * len(targets), [len(target) for target in targets])
    paging = replace(step.paging, sources=Sources(**{name: each.numpy() for name, each in laid.items()}))
    logits = engine.inner.compute(replace(step, paging=paging), kv_cache=engine.kv_cache)["logits"]
    return logits.numpy().copy()


FEWER_BITS = [pytest.param(each, marks=[] if each == "int4_weights" else [pytest.mark.slow]) for each in KINDS]


@pytest.mark.parametrize("precision", FEWER_BITS)
def test_fewer_bits(precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a GPU, by the references. Scores are not scaled, and errors about five times Llama's: norms of 9.7e-2,
    2.1e-2 and 2.6e-1. The table of words stays in 16 bits, and is there once for both programs."""
    backend = replace(plain_backend(torch.device("cpu")), keeps_linears=False)
    monkeypatch.setattr(build, "check_precision", lambda config: None)
    monkeypatch.setattr(build, "find_backend", lambda *_: backend)
    model, targets = make_seq2seq("t5", tmp_path), make_ids(TARGET_LENGTHS, seed=1)
    sources = make_ids(SOURCE_LENGTHS)
    engine = build_seq2seq(model, precision)
    expected = load_pair(model).compute_logits(sources, targets, whole(TARGET_LENGTHS))
    check_close(compute_rows(engine, sources, targets), expected, tolerance=DECODER_TOLERANCES[precision].times(5))
    decoder, encoder = (program.program for program in engine.programs)  # type: ignore[attr-defined]
    assert FEWER[precision] in {value.dtype for value in encoder.constants.values()}
    own = {id(value) for value in decoder.constants.values()}
    (table,) = [value for value in encoder.constants.values() if id(value) in own and value.dim() == 2]
    assert table.dtype == torch.bfloat16


QUICK = [("t5", ONNX, "fp32")]
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow], id="-".join(case))
    for name in CONFIGS
    for case in [*((name, "planned", each) for each in PRECISIONS), (name, ONNX, "fp32"), (name, ONNX, "int8")]
]


@pytest.mark.parametrize(("name", "kind", "precision"), CASES)
def test_every_precision(name: str, kind: str, precision: str, tmp_path: Path) -> None:
    model = make_seq2seq(name, tmp_path)
    random = np.random.default_rng(0)
    heard = [random.standard_normal((length, 20), np.float32) for length in SOURCE_LENGTHS]
    sources: Sequence[Any] = heard if model.info.task == "transcribe" else make_ids(SOURCE_LENGTHS)
    targets = make_ids(TARGET_LENGTHS, model.info.output_dim, seed=1)
    engine = build_seq2seq(model, precision, kind)
    found = compute_rows(engine, sources, targets)
    expected = load_pair(model).compute_logits(sources, targets, whole(TARGET_LENGTHS))
    tolerance = DECODER_TOLERANCES[precision].times(2 if name in GATED and precision != "fp32" else 1)
    tolerance = allow(tolerance, kind, precision)
    check_close(found, expected, tolerance=tolerance)
    alone = [compute_rows(engine, [source], [target]) for source, target in zip(sources, targets, strict=True)]
    if engine.info.kernels in ROUNDING:
        check_close(np.concatenate(alone), found, tolerance=tolerance)
    else:
        np.testing.assert_array_equal(np.concatenate(alone), found)
    assert not engine.info.unplanned_ops
