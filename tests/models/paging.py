"""Sequences in a paged cache, without an engine: blocks in no order, and one step of a decoder after the other."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from tiny_models import Ids
from torch import Tensor

from models.decoder_layers import Decoder
from runtime.batch import Batch, Paging
from runtime.capture import list_inputs
from runtime.engines.transfer import lay_out, to_tensors
from runtime.kv_cache.examples import sample_greedily
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
    inputs = to_tensors(make_step(ids, tables, done, counts), torch.device("cpu")) | {"kv_cache": kv_cache}
    outputs: dict[str, Tensor] = module(**{name: inputs[name] for name in list_inputs(module)})
    return outputs["logits"]


def make_step(ids: Sequence[Ids], tables: Sequence[Sequence[int]], done: Sequence[int], counts: Sequence[int]) -> Batch:
    """For the logits of the next `counts[i]` tokens of each sequence, behind `done[i]` that are in the cache."""
    active = [index for index, count in enumerate(counts) if count]
    lengths = [counts[index] for index in active]
    places = [np.arange(done[index], done[index] + counts[index]) for index in active]
    slots = [
        np.asarray(tables[index])[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
        for index, place in zip(active, places, strict=True)
    ]
    block_table = np.zeros((len(active), max(len(tables[index]) for index in active)), np.int32)
    for row, index in enumerate(active):
        block_table[row, : len(tables[index])] = tables[index]
    batch = lay_out(lengths, np.concatenate([ids[index][place] for index, place in zip(active, places, strict=True)]))
    paging = Paging(
        cache_seqlens=np.array([done[index] + counts[index] for index in active], np.int32),
        block_table=block_table,
        slot_mapping=np.concatenate(slots),
        logit_rows=np.arange(batch.num_tokens),
        sampling=sample_greedily(batch.num_tokens),
    )
    return replace(batch, arrays=batch.arrays | {"position_ids": np.concatenate(places)}, paging=paging)


def draw_tables(seqlens: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Blocks for so many tokens, no two the same, in no order, and some of them of nobody."""
    sizes = [-(-seqlen // BLOCK_SIZE) for seqlen in seqlens]
    blocks = np.random.default_rng(seed).permutation(sum(sizes) + 3).tolist()
    borders = np.cumsum([0, *sizes])
    return [blocks[start:end] for start, end in pairwise(borders)]
