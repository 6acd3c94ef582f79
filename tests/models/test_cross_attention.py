"""What decoders tell of their cross-attention, from an engine: the weights that transformers computes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from seq2seq_engines import Answering, answer, build_seq2seq
from tiny_decoders import make_ids
from tiny_models import Ids, TinyModel
from tiny_seq2seq import make_seq2seq

from models.keys import ModelDirectoryError
from models.load import load_model
from runtime.engines.cuda_graphs import CudaGraphsEngine
from runtime.engines.decoder import DecoderEngine
from runtime.engines.planned import PlannedEngine
from server.wire.generation import GenerationParams
from tests.kernels.repeating import Repeating
from tests.tolerances import DECODER_TOLERANCES, SAME_ENGINE, check_close

LENGTHS = [15, 33, 1]
TARGETS = [5, 17, 9]
STEEP = 1.5
"""Scores of T5 are not divided by sqrt(head_dim): rounding counts for more. Measured in bf16: 4.5e-1 at worst."""
FROM = 2
"""Tokens of each target that nobody asks about."""


@pytest.fixture(scope="module", params=["bart", pytest.param("t5", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    made = make_seq2seq(request.param, tmp_path_factory.mktemp(request.param))
    assert made.info.seq2seq is not None
    return replace(made, info=replace(made.info, seq2seq=replace(made.info.seq2seq, has_coverage=True)))


@pytest.fixture(scope="module")
def engine(model: TinyModel) -> DecoderEngine:
    return build_seq2seq(model)


def ask(model: TinyModel, engine: DecoderEngine, pairs: Sequence[tuple[Ids, Ids]], **options: Any) -> list[Any]:
    """What the tokens of each target look at in its source: [num_tokens, num_heads, num_keys]."""
    run = Answering(model, engine, **options)
    heard = []
    for source, target in pairs:
        run.opening = target.tolist()
        heard.append(run.start(source, GenerationParams(max_tokens=0, align_from=FROM)))
    run.run.run()
    assert all(each.error is None for each in heard)
    return [each.news[0].cross_weights for each in heard]


def make_pairs(model: TinyModel) -> list[tuple[Ids, Ids]]:
    return list(zip(make_ids(LENGTHS), make_ids(TARGETS, model.info.output_dim, seed=1), strict=True))


@torch.inference_mode()
def ask_transformers(model: TinyModel, source: Ids, target: Ids) -> torch.Tensor:
    """Of the last layer."""
    given = {"decoder_input_ids": torch.from_numpy(target)[None], "output_attentions": True, "use_cache": False}
    weights: torch.Tensor = model.theirs(torch.from_numpy(source)[None], **given).cross_attentions[-1][0]
    return weights.transpose(0, 1)[FROM:]


@pytest.mark.parametrize("chunk", [0, 4], ids=["whole", "in chunks"])
def test_weights_are_those_of_transformers(model: TinyModel, engine: DecoderEngine, chunk: int) -> None:
    """Of all heads of the last layer, each alone and all under way at once."""
    pairs = make_pairs(model)
    options = {"max_batch_tokens": 40} if chunk else {}
    together = ask(model, engine, pairs, **options)
    for (source, target), found in zip(pairs, together, strict=True):
        check_close(torch.from_numpy(found), ask_transformers(model, source, target))
        (alone,) = ask(model, engine, [(source, target)])
        check_close(torch.from_numpy(alone), torch.from_numpy(found), tolerance=SAME_ENGINE)


def test_replaying_engines_tell_the_same(model: TinyModel, engine: DecoderEngine) -> None:
    """Steps with sources run as planned; what encodes these is recorded."""
    recorder = Repeating()

    def record(planned: PlannedEngine) -> CudaGraphsEngine:
        parts = planned.program, planned.bound.kernels, planned.largest, planned.device, planned.info, None
        return CudaGraphsEngine(*parts, recorder)

    assert isinstance(engine.inner, PlannedEngine) and isinstance(engine.encoder, PlannedEngine)
    inner, encoder = record(engine.inner), record(engine.encoder)
    replaying = DecoderEngine(inner, torch.zeros_like(engine.kv_cache), "fp32", encoder)
    inner.prepare(lambda *_: None, kv_cache=replaying.kv_cache)
    encoder.buckets.all = encoder.buckets.all[-40:]
    encoder.prepare(lambda *_: None, kv_cache=replaying.kv_cache)
    recorder.num_replays = 0
    pairs = make_pairs(model)
    for ours, theirs in zip(ask(model, replaying, pairs), ask(model, engine, pairs), strict=True):
        check_close(torch.from_numpy(ours), torch.from_numpy(theirs))
    assert recorder.num_replays and not inner.recorded


@pytest.mark.slow
def test_the_reference_engine_tells_the_same(model: TinyModel, engine: DecoderEngine) -> None:
    pairs = make_pairs(model)
    found = ask(model, build_seq2seq(model, kind="reference"), pairs)
    for ours, theirs in zip(found, ask(model, engine, pairs), strict=True):
        check_close(torch.from_numpy(ours), torch.from_numpy(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions(model: TinyModel, precision: str) -> None:
    """They add to 1, and are about what they were."""
    pairs = make_pairs(model)
    for (source, target), found in zip(pairs, ask(model, build_seq2seq(model, precision), pairs), strict=True):
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
        expected = ask_transformers(model, source, target)
        tolerance = DECODER_TOLERANCES[precision].times(STEEP if model.info.architecture.startswith("T5") else 1)
        check_close(torch.from_numpy(found), expected, tolerance=tolerance)


def test_who_does_not_ask_is_answered_alike(model: TinyModel, engine: DecoderEngine) -> None:
    """The program that can tell writes what the one that cannot does."""
    assert model.info.seq2seq is not None
    plain = replace(model, info=replace(model.info, seq2seq=replace(model.info.seq2seq, has_coverage=False)))
    params = GenerationParams(12, temperature=0.0, stop_token_ids=(7,))
    sources = make_ids(LENGTHS)
    assert answer(model, engine, sources, params) == answer(plain, build_seq2seq(plain), sources, params)


def test_heads_that_are_not_there(tmp_path: Any) -> None:
    whisper = make_seq2seq("whisper", tmp_path)
    rules = whisper.info.seq2seq
    assert rules is not None and rules.speech is not None
    wrong = replace(rules, speech=replace(rules.speech, alignment_heads=((2, 1), (2, 2))))
    with pytest.raises(ModelDirectoryError, match=r"alignment_heads has \[2, 2\], and the decoder 3 layers of 2 heads"):
        load_model(tmp_path, replace(whisper.info, seq2seq=wrong))
