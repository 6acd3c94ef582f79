"""Every family of encoder-decoders against transformers, on tiny random models: logits after every token of targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paging import Steps, chunks, whole
from seq2seq_steps import CPU, Pair, load_pair
from tiny_decoders import make_ids
from tiny_models import Ids, TinyModel
from tiny_seq2seq import CONFIGS, RARE, decode_alone, make_seq2seq
from torch import Tensor

from models.load import load_model
from models.seq2seq_config import T5_TYPES
from runtime.batch import ArraySpec
from runtime.capture import capture, describe_outputs, is_paged, read_inputs
from runtime.kv_cache.layout import KVLayout
from runtime.ops import store_kv
from runtime.passes.rewriting import is_call
from tests.tolerances import SAME_ENGINE, check_close

SOURCE_LENGTHS = [15, 16, 33, 1, 40]
TARGET_LENGTHS = [17, 33, 5, 16, 1]
"""Around the borders of blocks, and of buckets of distances."""
WAYS: dict[str, Steps] = {
    "whole": whole(TARGET_LENGTHS),
    "chunks": chunks(TARGET_LENGTHS, [1, 16, 2, 7, 1]),
}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in CONFIGS]


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_seq2seq(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pair(model: TinyModel) -> Pair:
    return load_pair(model)


@pytest.fixture(scope="module")
def sources(model: TinyModel) -> list[Any]:
    if model.info.task == "transcribe":
        random = np.random.default_rng(0)
        return [random.normal(size=(40, 20)).astype(np.float32) for _ in SOURCE_LENGTHS]
    return make_ids(SOURCE_LENGTHS)


@pytest.fixture(scope="module")
def targets(model: TinyModel) -> list[Ids]:
    return make_ids(TARGET_LENGTHS, model.info.output_dim, seed=1)


@pytest.fixture(scope="module")
def expected(model: TinyModel, sources: list[Any], targets: list[Ids]) -> Tensor:
    if model.info.task == "transcribe":
        sources = [np.ascontiguousarray(source.reshape(80, 10).T) for source in sources]
    return decode_alone(model.theirs, sources, targets)


@pytest.mark.parametrize("way", WAYS)
def test_logits_match_transformers(
    pair: Pair, sources: list[Any], targets: list[Ids], expected: Tensor, way: str
) -> None:
    check_close(pair.compute_logits(sources, targets, WAYS[way]), expected, what=way)


def test_alone_is_as_in_a_batch(pair: Pair, sources: list[Any], targets: list[Ids]) -> None:
    together = pair.compute_logits(sources, targets, WAYS["whole"]).split(TARGET_LENGTHS)
    for index in (0, 3):
        alone = pair.compute_logits([sources[index]], [targets[index]], whole([TARGET_LENGTHS[index]]))
        check_close(alone, together[index], tolerance=SAME_ENGINE)


def test_targets_of_one_source_share_its_keys(model: TinyModel, pair: Pair, sources: list[Any]) -> None:
    """As beams do: the source is encoded once, and lies in the cache once."""
    answers = make_ids([9, 17, 4], model.info.output_dim, seed=2)
    lengths = [len(answer) for answer in answers]
    together = pair.compute_logits([sources[0]] * 3, answers, whole(lengths)).split(lengths)
    for answer, logits in zip(answers, together, strict=True):
        alone = pair.compute_logits([sources[0]], [answer], whole([len(answer)]))
        check_close(logits, alone, tolerance=SAME_ENGINE)


def test_layout_of_the_cache(model: TinyModel, pair: Pair) -> None:
    """As many layers and heads as the decoder has, of sources too."""
    is_t5 = model.theirs.config.model_type in T5_TYPES
    expected = KVLayout(3, 4, 12, torch.int8) if is_t5 else KVLayout(3, 2, 16, torch.int8)
    assert pair.decoder.kv_layout(torch.int8) == pair.encoder.kv_layout(torch.int8) == expected


def test_cache_of_another_type(pair: Pair, sources: list[Any], targets: list[Ids], expected: Tensor) -> None:
    check_close(pair.compute_logits(sources, targets, WAYS["chunks"], torch.bfloat16), expected, torch.bfloat16)


@pytest.mark.parametrize(
    "name", ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "t5")]
)
def test_both_programs_can_be_captured(name: str, tmp_path: Path) -> None:
    """Without reading a weight; the encoder's graph keeps what it is there for."""
    model = make_seq2seq(name, tmp_path)
    lazy = load_model(model.directory, model.info)
    assert lazy.encoder is not None
    encoder, decoder = capture(lazy.encoder, CPU), capture(lazy, CPU)
    assert describe_outputs(decoder) == (ArraySpec("logits", "float32", ("num_logits", model.info.output_dim)),)
    assert describe_outputs(encoder) == (ArraySpec("stored", "float32", (0,)),)
    assert is_paged(encoder) and is_paged(decoder)
    num_stored = [sum(is_call(node, store_kv.OP) for node in each.graph.nodes) for each in (encoder, decoder)]
    assert num_stored == [3, 3]
    source = "features" if name == "whisper" else "input_ids"
    places = {"cu_seqlens", "max_seqlen", "slot_mapping", "kv_cache"}
    assert read_inputs(encoder) == places | {source} | ({"position_ids"} if "t5" not in name else set())
