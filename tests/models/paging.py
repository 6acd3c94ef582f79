"""Sequences in a paged cache, without an engine: blocks in no order, and one step of a decoder after the other."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from tiny_models import Ids
from torch import Tensor

from models.decoder_layers import Decoder
from runtime.kv_cache.layout import BLOCK_SIZE

Steps = Sequence[Sequence[int]]
"""How many tokens of each sequence every step computes; 0 leaves it out."""


def whole(seqlens: Sequence[int]) -> Steps:
    return [list(seqlens)]


def chunks(seqlens: Sequence[int], sizes: Sequence[int]) -> Steps:
    """Sequence i by `sizes[i]` tokens a step: some are long done while others still begin."""
    counts = [
        [min(size, seqlen - start) for start in range(0, seqlen, size)]
        for seqlen, size in zip(seqlens, sizes, strict=True)
    ]
    num_steps = max(map(len, counts))
    return [[row[step] if step < len(row) else 0 for row in counts] for step in range(num_steps)]


def then_tokens(seqlens: Sequence[int], prompts: Sequence[int]) -> Steps:
    """The prompts at once, then one token of each sequence a step."""
    rest = [seqlen - prompt for seqlen, prompt in zip(seqlens, prompts, strict=True)]
    return [list(prompts), *([int(step < left) for left in rest] for step in range(max(rest)))]


def compute_logits(module: Decoder, ids: Sequence[Ids], steps: Steps, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of every token, in the order of `ids`, computed by these steps: [num_tokens, vocab_size]."""
    tables = draw_tables([len(sequence) for sequence in ids])
    num_blocks = 1 + max(block for table in tables for block in table)
    kv_cache = module.kv_layout(dtype).allocate(num_blocks, torch.device("cpu"))
    done = [0] * len(ids)
    found: list[list[Tensor]] = [[] for _ in ids]
    for counts in steps:
        active = [index for index, count in enumerate(counts) if count]
        logits = run_step(module, ids, tables, done, counts, kv_cache)
        for index, rows in zip(active, logits.split([counts[index] for index in active]), strict=True):
            found[index].append(rows)
            done[index] += counts[index]
    assert done == [len(sequence) for sequence in ids], "The steps do not compute all tokens. This is a bug."
    return torch.cat([rows for parts in found for rows in parts])


@torch.no_grad()
def run_step(
    module: Decoder,
    ids: Sequence[Ids],
    tables: Sequence[Sequence[int]],
    done: Sequence[int],
    counts: Sequence[int],
    kv_cache: Tensor,
) -> Tensor:
    """The logits of the next `counts[i]` tokens of each sequence, behind `done[i]` that are in the cache."""
    active = [index for index, count in enumerate(counts) if count]
    places = [np.arange(done[index], done[index] + counts[index]) for index in active]
    slots = [
        np.asarray(tables[index])[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
        for index, place in zip(active, places, strict=True)
    ]
    lengths = [counts[index] for index in active]
    block_table = np.zeros((len(active), max(len(tables[index]) for index in active)), np.int32)
    for row, index in enumerate(active):
        block_table[row, : len(tables[index])] = tables[index]
    outputs: dict[str, Tensor] = module(
        input_ids=torch.from_numpy(
            np.concatenate([ids[index][place] for index, place in zip(active, places, strict=True)])
        ),
        position_ids=torch.from_numpy(np.concatenate(places)),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        max_seqlen=max(lengths),
        slot_mapping=torch.from_numpy(np.concatenate(slots)),
        block_table=torch.from_numpy(block_table),
        cache_seqlens=torch.tensor([done[index] + counts[index] for index in active], dtype=torch.int32),
        logit_rows=torch.arange(sum(lengths)),
        kv_cache=kv_cache,
    )
    return outputs["logits"]


def draw_tables(seqlens: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Blocks for so many tokens, no two the same, in no order, and some of them of nobody."""
    sizes = [-(-seqlen // BLOCK_SIZE) for seqlen in seqlens]
    blocks = np.random.default_rng(seed).permutation(sum(sizes) + 3).tolist()
    borders = np.cumsum([0, *sizes])
    return [blocks[start:end] for start, end in pairwise(borders)]
