"""A decoder with a small one beside it that guesses what comes next (Leviathan et al., 2023; Chen et al., 2023).

The small model sees every token that the large one computes, in a cache of its own with the same blocks, so that
prefixes, forks and preemptions need no thought of their own. Its guesses come back with each step's tokens; whoever
schedules may put them into the next step, where the large model checks them all at once. A wrong or a missing guess
costs time and nothing else: tokens are always the large model's.
"""

from dataclasses import replace

import numpy as np

from runtime.batch import NO_TOKEN, Batch, IntArray, Output, Paging, SampledTokens
from runtime.engine import EngineInfo, MemoryStats, Progress
from runtime.engines.decoder import DecoderEngine
from runtime.kv_cache.blocks import BLOCK_SIZE, SCRATCH_BLOCK
from runtime.kv_cache.examples import sample_greedily
from runtime.kv_cache.newest import pack_newest


class SpeculatingEngine:
    """`draft` has as many blocks as `target` and the same vocabulary; both know positions below `max_positions`.

    One caller at a time.
    """

    def __init__(self, target: DecoderEngine, draft: DecoderEngine, num_drafts: int, max_positions: int) -> None:
        self.target, self.draft, self.num_drafts, self.max_positions = target, draft, num_drafts, max_positions

    @property
    def info(self) -> EngineInfo:
        """The large model's; memory of both."""
        info, other = self.target.info, self.draft.info
        return replace(
            info,
            num_drafts=self.num_drafts,
            weight_bytes=info.weight_bytes + other.weight_bytes,
            activation_bytes=info.activation_bytes + other.activation_bytes,
            graph_bytes=info.graph_bytes + other.graph_bytes,
            kv_cache_bytes=info.kv_cache_bytes + other.kv_cache_bytes,
        )

    def warmup(self, progress: Progress) -> None:
        self.draft.warmup(progress)
        self.target.warmup(progress)

    def run(self, batch: Batch) -> Output:
        output = self.target.run(batch)
        assert output.tokens is not None and batch.paging is not None
        self.draft.run(replace(batch, paging=without_logits(batch.paging)))
        return replace(output, tokens=self.propose(batch, batch.paging, output.tokens))

    def propose(self, batch: Batch, paging: Paging, tokens: SampledTokens) -> SampledTokens:
        """Guesses after the newest token of each sequence, in the row that gave that token."""
        drafts = np.full((batch.num_logits, self.num_drafts), NO_TOKEN, np.int64)
        rows = find_newest(batch, paging, tokens)
        position_ids = batch.arrays["position_ids"]
        last_positions = position_ids[paging.logit_rows[rows]] + self.num_drafts
        rows = rows[last_positions < self.max_positions]
        if not len(rows):
            return tokens
        places = paging.logit_rows[rows]
        owners = np.searchsorted(batch.cu_seqlens, places, side="right") - 1
        newest, positions, tables = tokens.token_ids[rows], position_ids[places] + 1, paging.block_table[owners]
        for step in range(self.num_drafts):
            # Rows go on as far as they have blocks to write to, and tokens to go on from.
            num_slots = (tables != SCRATCH_BLOCK).sum(1) * BLOCK_SIZE
            going_on = (positions < num_slots) & (newest != NO_TOKEN)
            rows, newest, positions, tables = (each[going_on] for each in (rows, newest, positions, tables))
            if not len(rows):
                break
            greedy = sample_greedily(len(rows))
            found = self.draft.run(pack_newest(newest, positions, tables, greedy)).tokens
            assert found is not None
            drafts[rows, step] = newest = found.token_ids
            positions = positions + 1
        return replace(tokens, draft_ids=drafts)

    def memory(self) -> MemoryStats:
        return self.target.memory().plus(self.draft.memory())

    def trim(self) -> None:
        self.target.trim()
        self.draft.trim()

    def close(self) -> None:
        self.target.close()
        self.draft.close()


def without_logits(paging: Paging) -> Paging:
    return replace(paging, logit_rows=np.zeros(0, np.int64), sampling=sample_greedily(0))


def find_newest(batch: Batch, paging: Paging, tokens: SampledTokens) -> IntArray:
    """The rows whose token is the newest of its sequence: those after the last draft that was right.

    None of a sequence with several answers, which are forked only after this step, and none without a token.
    """
    places, chosen = paging.logit_rows, paging.sampling.forced_ids == NO_TOKEN
    input_ids = batch.arrays["input_ids"]
    owners = np.searchsorted(batch.cu_seqlens, places, side="right") - 1
    newest: list[int] = []
    for owner in np.unique(owners[chosen]):
        rows = np.flatnonzero(chosen & (owners == owner))
        if len(np.unique(places[rows])) < len(rows):
            continue
        row = next(row for row in rows if row == rows[-1] or tokens.token_ids[row] != input_ids[places[row] + 1])
        if tokens.token_ids[row] != NO_TOKEN:
            newest.append(int(row))
    return np.array(newest, np.int64)
