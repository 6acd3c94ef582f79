"""Times an engine on a few shapes at start-up, for the first cost model."""

from time import monotonic

import numpy as np

from runtime.batch import Batch
from runtime.engine import Engine, Progress
from runtime.kv_cache.examples import page_alone
from server.engine.batchers.packing import pack_sequences
from server.engine.cost_model import CostModel, StepCost, fit_cost_model
from server.wire.job import TokenSequence

BUDGET_S = 0.4
"""No further shape is begun after this; the first steps of traffic tell the rest."""
REPEATS = 2
"""The faster of two runs counts: the machine may be busy, the engine is never faster than it is."""


def calibrate(
    engine: Engine, *, max_batch_tokens: int, max_batch_requests: int, max_input_tokens: int, progress: Progress
) -> CostModel:
    """Run every shape of the grid and fit. Short and long sequences tell the linear from the quadratic part."""
    shapes = [(*shape, 0) for shape in list_shapes(max_batch_tokens, max_batch_requests, max_input_tokens)]
    num_blocks = engine.info.num_blocks
    if num_blocks:
        # A decoder's usual steps: one token of each sequence, behind few or many others.
        past = min(256, max_input_tokens - 1)
        most = min(max_batch_requests, max_batch_tokens, engine.info.max_batch_logits)
        shapes = [*((num_seqs, 1, past) for num_seqs in sorted({1, min(8, most), most})), *shapes]
    samples: list[tuple[StepCost, float]] = []
    began_s = monotonic()
    for index, (num_seqs, seqlen, past) in enumerate(shapes):
        progress("timing", index, len(shapes))
        batch = pack_sequences([TokenSequence(np.zeros(seqlen, np.int32))] * num_seqs)
        if num_blocks:
            batch = page_alone(batch, num_blocks=num_blocks, past=past)
        cost = StepCost(num_seqs * seqlen, num_seqs * seqlen * (past + seqlen))
        samples.append((cost, min(time_run(engine, batch))))
        if monotonic() - began_s > BUDGET_S:
            break
    progress("timing", len(shapes), len(shapes))
    return fit_cost_model(samples)


def time_run(engine: Engine, batch: Batch) -> list[float]:
    seconds = []
    for _ in range(REPEATS):
        started_s = monotonic()
        engine.run(batch)
        seconds.append(monotonic() - started_s)
    return seconds


def list_shapes(max_batch_tokens: int, max_batch_requests: int, max_input_tokens: int) -> list[tuple[int, int]]:
    """(num_seqs, seqlen) from one short sequence to a quarter of the budget, which is where rates have levelled off."""
    shapes = set()
    max_input_tokens = min(max_input_tokens, max_batch_tokens)
    for seqlen in (8, 64, max_input_tokens):
        seqlen = min(seqlen, max_input_tokens)
        for num_tokens in (seqlen, 256, max_batch_tokens // 4):
            num_seqs = min(num_tokens, max_batch_tokens) // seqlen
            shapes.add((max(1, min(num_seqs, max_batch_requests)), seqlen))
    return sorted(shapes)
