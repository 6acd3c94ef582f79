"""A decoder that computes nothing and remembers everything: its tokens depend on all that its cache holds.

Its KV cache holds token ids. A scheduler that loses, mixes up or forgets to copy a block makes it say something else,
so answers are as good a check of the bookkeeping as a real model's, in microseconds.
"""

import time

import numpy as np
import numpy.typing as npt

from runtime.batch import NO_TOKEN, Batch, Output, Paging, SampledTokens
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.kv_cache.blocks import BLOCK_SIZE

EMPTY = -1


class NullDecoder:
    """The next token is a hash of the past, and of the random number if the temperature is over 0; see `choose_token`.

    A step that contains `fail_token_id` fails; a row after `nan_token_id` has no token. `max_steps`: so many succeed,
    and then none; None: all do. Mutable: the cache, and how many steps have been run.
    """

    def __init__(
        self,
        info: EngineInfo,
        *,
        step_ms: float = 0.0,
        us_per_token: float = 0.0,
        fail_token_id: int | None = None,
        nan_token_id: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.info = info
        self.vocab_size = int(info.outputs[0].dims[-1])
        self.step_s, self.s_per_token = step_ms / 1e3, us_per_token / 1e6
        self.fail_token_id, self.nan_token_id = fail_token_id, nan_token_id
        self.max_steps, self.num_steps = max_steps, 0
        self.cache = np.full((info.num_blocks, BLOCK_SIZE), EMPTY, np.int64)

    def warmup(self, progress: Progress) -> None:
        progress("warming up", 1, 1)

    def run(self, batch: Batch) -> Output:
        paging = batch.paging
        assert paging is not None, "A decoder's batch has paging. This is a bug."
        sleep_s = self.step_s + self.s_per_token * batch.num_tokens
        if sleep_s:
            time.sleep(sleep_s)
        if self.fail_token_id is not None and self.fail_token_id in batch.arrays["input_ids"]:
            raise EngineError(f"asked to fail by token {self.fail_token_id}")
        self.num_steps += 1
        if self.max_steps is not None and self.num_steps > self.max_steps:
            raise EngineError(f"asked to fail after {self.max_steps} steps")
        if len(paging.block_copies):
            self.cache[paging.block_copies[:, 1]] = self.cache[paging.block_copies[:, 0]]
        if paging.sources is not None and paging.sources.batch is not None:
            new = paging.sources.batch.arrays
            self.cache.reshape(-1)[new["slot_mapping"]] = new["input_ids"]
        self.cache.reshape(-1)[paging.slot_mapping] = batch.arrays["input_ids"]
        return Output({}, self.choose(batch, paging))

    def choose(self, batch: Batch, paging: Paging) -> SampledTokens:
        sampling = paging.sampling
        width = max(int(sampling.num_top.max(initial=0)), 0)
        tokens = np.full(batch.num_logits, NO_TOKEN, np.int64)
        logprobs = np.full(batch.num_logits, np.nan, np.float32)
        top_ids = np.full((batch.num_logits, width), NO_TOKEN, np.int64)
        top_logprobs = np.full((batch.num_logits, width), np.nan, np.float32)
        for row, place in enumerate(paging.logit_rows):
            past = self.read_past(batch, paging, int(place))
            if self.nan_token_id is not None and past[-1] == self.nan_token_id:
                continue
            noise = int(sampling.uniforms[row] * 2**30) if sampling.temperature[row] > 0 else 0
            forced = int(sampling.forced_ids[row])
            tokens[row] = choose_token(past, noise, self.vocab_size) if forced == NO_TOKEN else forced
            count = int(sampling.num_top[row])
            if count >= 0:
                logprobs[row] = -float(past[-1] % 7) / 7 - 0.1
            for rank in range(max(count, 0)):
                top_ids[row, rank] = choose_token(past, rank, self.vocab_size)
                top_logprobs[row, rank] = -0.1 - rank
        return SampledTokens(tokens, logprobs, top_ids, top_logprobs)

    def read_past(self, batch: Batch, paging: Paging, place: int) -> npt.NDArray[np.int64]:
        """The source's tokens, and all up to the batch's token number `place`, as the cache has them."""
        seq = int(np.searchsorted(batch.cu_seqlens, place, side="right")) - 1
        last = int(batch.arrays["position_ids"][place])
        past = self.read(paging.block_table[seq], last + 1)
        if paging.sources is None:
            return past
        source = self.read(paging.sources.source_table[seq], int(paging.sources.source_seqlens[seq]))
        return np.concatenate([source, past])

    def read(self, block_ids: npt.NDArray[np.int32], num_tokens: int) -> npt.NDArray[np.int64]:
        return self.cache[block_ids].reshape(-1)[:num_tokens]

    def memory(self) -> MemoryStats:
        return MemoryStats()

    def trim(self) -> None:
        """Nothing is held but the cache."""

    def close(self) -> None:
        """Nothing is held but the cache."""


def choose_token(past: npt.NDArray[np.int64], noise: int, vocab_size: int) -> int:
    """A number that any change of the past, or of its order, would change."""
    mixed = noise + 1
    for token in past.tolist():
        mixed = (mixed * 1_000_003 + token + 7) % 2_305_843_009_213_693_951
    return mixed % vocab_size
