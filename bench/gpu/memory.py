"""Part `memory`: what activations take over 1,000 mixed batches, of our arena and of torch's caching allocator.

Ours runs them packed, Hugging Face's BERT padded to each batch's longest text, in the same type. Weights are left out.
"""

import numpy as np
import torch

from bench.gpu.encoders import MAX_POSITIONS, Shape, build_huggingface, build_padless, pack
from bench.gpu.part import Part
from runtime.batch import Batch
from runtime.limits import BatchLimits

HEADINGS = ["allocator", "batches", "MB at the end", "MB at most", "batches that took more"]
OURS, TORCH = "padless, arena", "torch, caching allocator"
MAX_TOKENS, MAX_SEQS, LONGEST = 8192, 64, 512


def sample_batches(count: int, max_tokens: int) -> list[Batch]:
    """1 to 64 texts of log-normal lengths, median 40 and up to 512, cut to the token budget."""
    rng = np.random.default_rng(3)
    batches = []
    for _ in range(count):
        lengths = np.clip(np.exp(rng.normal(np.log(40), 1.0, int(rng.integers(1, MAX_SEQS + 1)))), 4, LONGEST)
        lengths = lengths.astype(np.int64)
        batches.append(pack(lengths[np.cumsum(lengths) <= max_tokens].tolist() or [int(lengths[0] % max_tokens) + 1]))
    return batches


def run_ours(part: Part, batches: list[Batch], limits: BatchLimits) -> list[int]:
    """Bytes that the arena holds after each batch."""
    engine = build_padless(part.target, Shape.of(part.target), part.target.kinds[0], part.target.precisions[0], limits)
    held = []
    for batch in batches:
        engine.run(batch)
        held.append(engine.memory().arena_reserved_bytes)
    engine.close()
    return held


def run_torch(part: Part, batches: list[Batch]) -> list[int]:
    """Bytes that torch has reserved over what it had with the weights alone; nothing is known of a CPU."""
    run = build_huggingface(part.target, Shape.of(part.target))
    if part.target.is_dry:
        for batch in batches:
            run(batch, batch.max_seqlen)
        return [0] * len(batches)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    weights, held = torch.cuda.memory_reserved(), []
    for batch in batches:
        run(batch, batch.max_seqlen)
        held.append(torch.cuda.memory_reserved() - weights)
    return held


def compare_memory(part: Part) -> None:
    part.headings = HEADINGS
    batches = sample_batches(part.target.pick(1000, 6), part.target.pick(MAX_TOKENS, 256))
    limits = BatchLimits(part.target.pick(MAX_TOKENS, 256), MAX_SEQS, min(LONGEST, MAX_POSITIONS))

    def keep(name: str, held: list[int]) -> list[int]:
        num_grown = int((np.diff([0, *held]) > 0).sum())
        part.rows.append(
            [name, str(len(held)), *(f"{each / 2**20:.1f}" for each in (held[-1], max(held))), str(num_grown)]
        )
        return held

    part.run_cases(
        {
            OURS: lambda: keep(OURS, run_ours(part, batches, limits)),
            TORCH: lambda: keep(TORCH, run_torch(part, batches)),
        }
    )
    series = {name: (range(len(held)), [each / 2**20 for each in held]) for name, held in part.results.items()}
    part.plot(series, x="batch", y="MB held", title="Activations over mixed batches, BERT-base")
