"""Steps that are recorded and replayed: filled up to buckets, on memory that stays. A device's graph is stood in for by
running what was recorded again."""

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime.batch import Batch
from runtime.build import build_engine, describe
from runtime.capture import capture
from runtime.config import EngineConfig, UnusableConfig
from runtime.engines.buckets import Bucket, Buckets, climb, divide, fill_up
from runtime.engines.cuda_graphs import WORKSPACE_BYTES, CudaGraphsEngine, count_graph_bytes
from runtime.engines.decoder import DecoderEngine
from runtime.engines.planned import PlannedEngine, peak_bytes
from runtime.engines.transfer import Staging, make_batch, take_arrays
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.examples import page_alone
from runtime.kv_cache.layout import KVLayout
from runtime.limits import BatchLimits
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.open import give_caches
from runtime.passes.pipeline import choose_precision, list_passes
from runtime.program import Program
from tests.kernels.kernel_cases import find_backend
from tests.kernels.repeating import Repeating
from tests.kernels.tiny_graphs import CPU, LLAMA_CONFIG, random_batch, rewrite, tiny_bert, tiny_llama
from tests.tolerances import check_close

LARGEST = BatchShape(96, 9, 32, 8)
BACKEND = find_backend("torch")
CHOICE = choose_precision("fp32", BACKEND)
NUM_BLOCKS = 24
LAYOUT = KVLayout(LLAMA_CONFIG.num_layers, LLAMA_CONFIG.num_kv_heads, LLAMA_CONFIG.head_dim, torch.float32)


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def lower_model(module: torch.nn.Module) -> Program:
    return lower(rewrite(capture(module, CPU), *list_passes(CHOICE, BACKEND)), BACKEND.kernels)


@pytest.fixture(scope="module")
def bert() -> Program:
    return lower_model(tiny_bert())


@pytest.fixture(scope="module")
def llama() -> Program:
    return lower_model(tiny_llama())


def make_planned(program: Program) -> PlannedEngine:
    return PlannedEngine(
        program, BACKEND.kernels, LARGEST, CPU, describe(program, CHOICE, LARGEST, BACKEND), cap_bytes=None
    )


def make_graphs(program: Program, recorder: Repeating) -> CudaGraphsEngine:
    info = describe(program, CHOICE, LARGEST, BACKEND)
    return CudaGraphsEngine(program, BACKEND.kernels, LARGEST, CPU, info, None, recorder)


def test_replayed_steps_of_an_encoder_are_the_planned_ones(bert: Program) -> None:
    """Whatever was computed before, and with the arena where it was."""
    recorder = Repeating()
    engine, planned = make_graphs(bert, recorder), make_planned(bert)
    engine.warmup(silent)
    before, rng = engine.memory(), random.Random(0)
    recorder.num_replays = 0
    for seed in range(60):
        seqlens = [rng.randint(1, rng.choice([2, 10])) for _ in range(rng.randint(1, 8))]
        batch = random_batch(seqlens, seed)
        found, expected = engine.run(batch).arrays["embeddings"], planned.run(batch).arrays["embeddings"]
        check_close(found, expected, what=str(seqlens))
    assert recorder.num_replays == 60
    after = engine.memory()
    assert (after.num_arena_allocations, after.arena_reserved_bytes) == (1, before.arena_reserved_bytes)


def test_steps_outside_the_buckets_run_as_planned(bert: Program) -> None:
    recorder = Repeating()
    engine, planned = make_graphs(bert, recorder), make_planned(bert)
    engine.warmup(silent)
    recorder.num_replays = 0
    small = random_batch([5, 3])
    for batch in (random_batch([32, 32, 32]), small, random_batch([12] * 8)):
        check_close(engine.run(batch).arrays["embeddings"], planned.run(batch).arrays["embeddings"])
    assert recorder.num_replays == 1


def test_a_step_that_cannot_be_recorded_is_told_of_once(bert: Program, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Repeating(most=2)
    engine = make_graphs(bert, recorder)
    with caplog.at_level(logging.WARNING):
        engine.warmup(silent)
    (told,) = caplog.messages
    assert "cannot be recorded as a CUDA graph" in told and "stream is capturing" in told
    assert list(engine.recorded) == engine.buckets.all[:2]
    batch = random_batch([5, 3])
    check_close(engine.run(batch).arrays["embeddings"], make_planned(bert).run(batch).arrays["embeddings"])
    assert recorder.num_replays == 0


def page(seqlens: list[int], token_id: int, past: int = 0) -> Batch:
    return page_alone(make_batch(seqlens, token_id), num_blocks=NUM_BLOCKS, past=past)


def test_replayed_steps_of_a_decoder_are_the_planned_ones(llama: Program) -> None:
    """Prompts run as planned; and what scratch sequences write goes to the scratch block alone."""
    recorder = Repeating()
    mine, theirs = (LAYOUT.allocate(NUM_BLOCKS, CPU) for _ in range(2))
    engine = DecoderEngine(make_graphs(llama, recorder), mine, "fp32")
    engine.warmup(silent)
    planned = DecoderEngine(make_planned(llama), theirs, "fp32")
    mine.zero_()
    recorder.num_replays = 0
    steps = [page([7, 20], 3), page([1, 1], 5, past=20), page([1] * 5, 4, past=9), page([1], 8, past=30)]
    for batch in steps:
        found, expected = engine.run(batch).tokens, planned.run(batch).tokens
        assert found is not None and expected is not None
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        check_close(mine[:, 1:].numpy(), theirs[:, 1:].numpy())
    assert recorder.num_replays == 3


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_recorded_steps_hold_is_counted(name: str, request: pytest.FixtureRequest) -> None:
    """Their inputs to the byte, and room for the largest of them."""
    program = request.getfixturevalue(name)
    engine, kept = make_graphs(program, Repeating()), {}
    if name == "llama":
        kept = {"kv_cache": LAYOUT.allocate(NUM_BLOCKS, CPU)}
    engine.prepare(silent, **kept)
    staged = sum(len(step.staging.there) for step in engine.recorded.values())
    pool = peak_bytes(program, engine.buckets.all[0].shape)
    assert count_graph_bytes(program, LARGEST) == staged + pool + WORKSPACE_BYTES and pool > 0


def test_a_cache_leaves_room_for_recorded_steps(llama: Program) -> None:
    config = EngineConfig.model_validate({"kv_cache": {"budget_mb": 4}})

    def count_blocks(graph_bytes: int) -> int:
        engine = make_planned(llama)
        engine.info = replace(engine.info, graph_bytes=graph_bytes)
        return give_caches([engine], [LAYOUT], config, BatchLimits(96, 10**6, 32, 8), 0).info.num_blocks

    assert count_blocks(0) - count_blocks(10 * LAYOUT.block_bytes) == 10


def test_buckets_lie_on_a_ladder() -> None:
    assert list(climb(20)) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    buckets = Buckets(BatchShape(4096, 65, 512, 64), {"input_ids", "cu_seqlens"})
    assert buckets.all[0].shape == BatchShape(2048, 65, 512, 64)
    assert buckets.all == sorted(buckets.all, reverse=True)
    for num_tokens, num_seqs, max_seqlen, _ in (each.shape for each in buckets.all):
        assert num_seqs <= num_tokens <= num_seqs * max_seqlen
    tokens = Buckets(BatchShape(4096, 65, 512, 64), {"input_ids", "block_table"})
    assert max(each.shape.num_tokens for each in tokens.all) == 64
    assert {each.max_blocks for each in tokens.all} == {16, 32}
    assert all(each.shape.max_seqlen == 1 for each in tokens.all)


@pytest.mark.parametrize("seqlens", [[1], [1, 1, 1, 1, 1], [7, 1], [32, 9], [3] * 8], ids=str)
def test_scratch_sequences_are_sequences(seqlens: list[int], bert: Program) -> None:
    batch = random_batch(seqlens)
    bucket = Buckets(LARGEST, bert.read_inputs).find(batch)
    assert bucket is not None
    shape = BatchShape(batch.num_tokens, batch.num_seqs, batch.max_seqlen, batch.num_logits)
    read = {*bert.read_inputs, "num_keys", "logit_rows"}
    filled = fill_up(take_arrays(batch, read), shape, bucket)
    lengths = np.diff(filled["cu_seqlens"])
    assert lengths.sum() == bucket.shape.num_tokens == len(filled["input_ids"])
    assert len(lengths) == bucket.shape.num_seqs > batch.num_seqs
    assert lengths.min() >= 1 and lengths.max() <= bucket.shape.max_seqlen
    np.testing.assert_array_equal(filled["num_keys"], lengths)
    np.testing.assert_array_equal(filled["input_ids"][: batch.num_tokens], batch.arrays["input_ids"])
    assert (np.diff(filled["logit_rows"]) >= 0).all() and len(filled["logit_rows"]) == bucket.shape.num_logits


def test_scratch_tokens_go_to_the_scratch_block() -> None:
    batch = page([1, 1, 1, 1, 1], 5, past=20)
    bucket = Buckets(LARGEST, {"block_table"}).find(batch)
    assert bucket == Bucket(BatchShape(6, 6, 1, 6), 2)
    filled = fill_up(take_arrays(batch, {"slot_mapping", "block_table", "cache_seqlens", "cu_seqlens"}),
                     BatchShape(5, 5, 1, 5), bucket)  # fmt: skip
    assert (filled["slot_mapping"][5:] < BLOCK_SIZE).all() and (filled["slot_mapping"][:5] >= BLOCK_SIZE).all()
    assert filled["cache_seqlens"].tolist() == [21] * 5 + [1] and not filled["block_table"][5:].any()


def test_steps_of_several_tokens_are_in_no_bucket_of_a_decoder() -> None:
    buckets = Buckets(LARGEST, {"block_table"})
    assert buckets.find(page([1, 2], 5)) is None
    assert not Buckets(LARGEST, {"block_table", "source_table"}).all


def test_tokens_are_divided_evenly() -> None:
    assert divide(7, 3).tolist() == [3, 2, 2]
    assert divide(0, 0).tolist() == []


def test_staged_arrays_arrive_at_the_same_addresses() -> None:
    staging = Staging(CPU)
    with torch.inference_mode():
        first = staging.send({"ids": np.arange(5), "lengths": np.ones((3, 2), np.int32), "none": np.zeros(0)})
        places = {name: tensor.data_ptr() for name, tensor in first.items()}
        second = staging.send({"ids": np.arange(5) * 7, "lengths": np.zeros((3, 2), np.int32), "none": np.zeros(0)})
    assert {name: tensor.data_ptr() for name, tensor in second.items()} == places
    assert second["ids"].tolist() == [0, 7, 14, 21, 28] and second["ids"].dtype == torch.int64
    assert second["lengths"].shape == (3, 2) and second["none"].dtype == torch.float64


def test_another_device_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnusableConfig, match=r"cuda_graphs needs engine.device cuda. Set device to cuda, or kind"):
        build_engine(tiny_bert(), EngineConfig(kind="cuda_graphs"), BatchLimits(64, 8, 32), silent)
