"""What was chosen for a step to one packed Batch: end to end, no padding. Pure numpy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.batch import Batch, Paging, Sources, find_middles
from runtime.kv_cache.blocks import BLOCK_SIZE
from server.engine.batchers.counters import Counters
from server.engine.batchers.part import Part
from server.engine.batchers.sampling_rows import Row, build_sampling
from server.engine.batchers.sources import pack_sources, pack_tables
from server.wire.job import Job, TokenSequence, write_inputs


def sort_by_length(lengths: Sequence[int]) -> list[int]:
    """The order to pack in. Equal lengths become neighbours, which kernels run as one dense block."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def pack(inputs: Sequence[tuple[Job, int]]) -> Batch:
    """Lay inputs of jobs, each given by its number, end to end in this order. None may be empty."""
    rows = [job.input_ids.row(index) for job, index in inputs]
    seqlens = np.array([len(row) for row in rows], dtype=np.int32)
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(seqlens, out=cu_seqlens[1:])
    num_tokens = int(cu_seqlens[-1])
    token_type_ids = np.zeros(num_tokens, dtype=np.int64)
    num_prompt_tokens, num_keys = np.zeros(len(rows), dtype=np.int32), seqlens.copy()
    adapter_ids = np.zeros(len(rows), dtype=np.int64)
    for place, (job, index) in enumerate(inputs):
        types, counts = job.inputs.get("token_type_ids"), job.inputs.get("num_prompt_tokens")
        keys, adapters = job.inputs.get("num_keys"), job.inputs.get("adapter_ids")
        if types is not None:
            token_type_ids[cu_seqlens[place] : cu_seqlens[place + 1]] = types.row(index)
        if counts is not None:
            num_prompt_tokens[place] = counts.values[index]
        if keys is not None:
            num_keys[place] = keys.values[index]
        if adapters is not None:
            adapter_ids[place] = adapters.values[index]
    return Batch(
        arrays={
            "input_ids": np.concatenate(rows).astype(np.int64),
            "position_ids": np.arange(num_tokens) - np.repeat(cu_seqlens[:-1], seqlens),
            "token_type_ids": token_type_ids,
            "adapter_ids": np.repeat(adapter_ids, seqlens),
            "num_prompt_tokens": num_prompt_tokens,
            "num_keys": num_keys,
            "logit_rows": find_logit_rows(inputs, cu_seqlens),
        },
        cu_seqlens=cu_seqlens,
        max_seqlen=int(seqlens.max()),
    )


def find_logit_rows(inputs: Sequence[tuple[Job, int]], cu_seqlens: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The tokens of the batch that are to be guessed: those that jobs say, counted from the first of each input."""
    if not any("logit_rows" in job.inputs for job, _ in inputs):
        return find_middles(cu_seqlens)
    rows = [
        cu_seqlens[place] + job.inputs["logit_rows"].row(index).astype(np.int64)
        for place, (job, index) in enumerate(inputs)
        if "logit_rows" in job.inputs
    ]
    return np.concatenate(rows)


def pack_sequences(sequences: Sequence[TokenSequence]) -> Batch:
    """The same of inputs that belong to no job."""
    job = Job("", write_inputs(sequences), 0.0)
    return pack([(job, index) for index in range(len(sequences))])


def pack_parts(
    parts: Sequence[Part],
    copies: Sequence[tuple[int, int]],
    rows: Sequence[Row],
    vocab_size: int,
    counters: Counters | None = None,
) -> Batch:
    """The parts of generations, in their order; `rows` as `list_rows` gives them; `copies` of blocks come first.
    `counters`: as `build_sampling` takes them."""
    seqlens = np.array([part.num_tokens for part in parts], dtype=np.int32)
    computed = np.array([part.num_past_tokens for part in parts], dtype=np.int64)
    cu_seqlens = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum(seqlens, out=cu_seqlens[1:])
    num_tokens = int(cu_seqlens[-1])
    input_ids: list[int] = []
    for part in parts:
        input_ids += list_tokens(part)
    owner = np.repeat(np.arange(len(parts)), seqlens)
    position_ids = np.arange(num_tokens) - cu_seqlens[:-1][owner] + computed[owner]
    block_table = pack_tables([part.sequence.table.block_ids for part in parts])
    blocks = block_table[owner, position_ids // BLOCK_SIZE].astype(np.int64)
    paging = Paging(
        cache_seqlens=(computed + seqlens).astype(np.int32),
        block_table=block_table,
        slot_mapping=blocks * BLOCK_SIZE + position_ids % BLOCK_SIZE,
        logit_rows=np.array([row.token_row for row in rows], np.int64),
        sampling=build_sampling(rows, vocab_size, counters),
        block_copies=np.array(copies, np.int64).reshape(-1, 2),
        sources=find_sources(parts, cu_seqlens),
    )
    ids = np.array(input_ids, np.int64)
    return Batch({"input_ids": ids, "position_ids": position_ids}, cu_seqlens, int(seqlens.max()), paging)


def find_sources(parts: Sequence[Part], cu_seqlens: npt.NDArray[np.int32]) -> Sources | None:
    """Of encoder-decoders: what the parts are answers to, which of these are new, and which tokens tell of them."""
    answering = [part.generation.source for part in parts if part.generation.source is not None]
    if not answering:
        return None
    new = [part.generation.source for part in parts if part.encodes and part.generation.source is not None]
    firsts = cu_seqlens.tolist()
    weight_rows = [first + place for part, first in zip(parts, firsts, strict=False) for place in part.weight_places]
    return pack_sources(answering, new, weight_rows)


def list_tokens(part: Part) -> list[int]:
    """What of its sequence is computed, drafts included."""
    first = part.num_past_tokens
    return [*part.sequence.token_ids[first : first + part.num_tokens - len(part.drafts)], *part.drafts]
