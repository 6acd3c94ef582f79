"""THE CONTRACT between serving and runtime: named arrays of a packed batch go in; arrays or tokens come out.

All are plain numpy in a dataclass, so the border can be a process boundary.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

Arrays = dict[str, npt.NDArray[Any]]

NO_TOKEN = -1
"""In place of a token: none is forced, or none could be chosen because the model computed NaN."""


CROSS_WEIGHTS = "cross_weights"
"""The output of a decoder that tells what its tokens look at in their sources, see `Sources.weight_rows`."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a graph: its name, numpy's name of its type, and its dimensions.

    These are numbers, or symbols: num_tokens, num_seqs, num_seqs + 1, num_logits, max_blocks, max_source_blocks and
    num_weight_rows of the batch; and num_features, which is the model's.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]


INPUTS: dict[str, ArraySpec] = {
    spec.name: spec
    for spec in (
        ArraySpec("input_ids", "int64", ("num_tokens",)),
        ArraySpec("position_ids", "int64", ("num_tokens",)),
        ArraySpec("token_type_ids", "int64", ("num_tokens",)),
        ArraySpec("adapter_ids", "int64", ("num_tokens",)),
        ArraySpec("num_prompt_tokens", "int32", ("num_seqs",)),
        ArraySpec("num_keys", "int32", ("num_seqs",)),
        ArraySpec("cu_seqlens", "int32", ("num_seqs + 1",)),
        ArraySpec("max_seqlen", "int64", ()),
        ArraySpec("slot_mapping", "int64", ("num_tokens",)),
        ArraySpec("block_table", "int32", ("num_seqs", "max_blocks")),
        ArraySpec("cache_seqlens", "int32", ("num_seqs",)),
        ArraySpec("source_table", "int32", ("num_seqs", "max_source_blocks")),
        ArraySpec("source_seqlens", "int32", ("num_seqs",)),
        ArraySpec("weight_rows", "int64", ("num_weight_rows",)),
        ArraySpec("features", "float32", ("num_tokens", "num_features")),
        ArraySpec("logit_rows", "int64", ("num_logits",)),
        # The memory of the engine and not of a batch; its type, and the dimensions but num_blocks, are the model's.
        ArraySpec("kv_cache", "float32", ("num_layers", "num_blocks", 2, "num_kv_heads", "head_size")),
    )
}
"""All that a model's forward may take, by name: `Batch.arrays`, the rest of `Batch`, `Paging`, and the cache."""


@dataclass(frozen=True, slots=True)
class SparseBias:
    """Numbers added to single logits: `values[i]` to that of token `ids[i]` in row `rows[i]`. -inf forbids a token."""

    rows: IntArray
    ids: IntArray
    values: FloatArray


@dataclass(frozen=True, slots=True)
class History:
    """The tokens before each row that has penalties: `ids[i]` stands before row `rows[i]`, as often as it is listed."""

    rows: IntArray
    ids: IntArray
    is_generated: BoolArray
    """False: in the prompt, where only the repetition penalty looks."""


@dataclass(frozen=True, slots=True)
class Counted:
    """In place of a history, of rows whose tokens the engine counts (`EngineInfo.num_counters`): row `rows[i]` stands
    behind what counter `counters[i]` holds.

    Before that the counters `cleared` begin anew, and token `added_ids[i]` is counted once more by `added_counters[i]`,
    as one of the prompt, of which each is listed once, or as a generated one. The same step again would count twice.
    """

    rows: IntArray
    counters: IntArray
    cleared: IntArray
    added_counters: IntArray
    added_ids: IntArray
    is_generated: BoolArray


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """The tokens that a grammar allows: bit `id % 32` of word `id // 32`.

    `bits`: uint32 `[num_masked, ceil(vocab_size / 32)]`.
    """

    rows: IntArray
    bits: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class OnlyTokens:
    """The only tokens of some rows: the logit of token `ids[i]` in row `rows[i]` becomes 0, and all others of that row
    -inf."""

    rows: IntArray
    ids: IntArray


@dataclass(frozen=True, slots=True)
class TokenRanges:
    """Tokens that are forbidden, too many to be listed: in row `rows[i]` those from `firsts[i]` up to and without
    `ends[i]`."""

    rows: IntArray
    firsts: IntArray
    ends: IntArray


@dataclass(frozen=True, slots=True)
class TimestampRule:
    """Where the tokens from `begins[i]` on are together more probable than each of those before, row `rows[i]` becomes
    one of them (Whisper)."""

    rows: IntArray
    begins: IntArray


@dataclass(frozen=True, slots=True)
class Sampling:
    """How rows of logits become tokens, in this order; all arrays are `[num_logits]`.

    Repetition penalty, then presence and frequency penalties, only tokens, bias, ranges, masks, timestamps; what
    `logprobs` tell is the distribution so far. Then temperature, top-k, top-p, min-p, and the token is where the
    cumulated probabilities, most probable first, pass `uniforms`. A row's token so depends on that row alone, and with
    the same number it is the same again.
    """

    temperature: FloatArray
    """0: the most probable token; of equal ones the first."""
    top_k: Int32Array
    """0: all."""
    top_p: FloatArray
    min_p: FloatArray
    """Tokens less probable than this times the most probable one are left out; 0: none."""
    uniforms: npt.NDArray[np.float64]
    """Random numbers in [0, 1)."""
    repetition_penalty: FloatArray
    """1: none (Keskar et al., 2019: positive logits are divided by it, negative ones multiplied)."""
    presence_penalty: FloatArray
    frequency_penalty: FloatArray
    """Subtracted once, and once for each time, from the logits of generated tokens (OpenAI)."""
    num_top: Int32Array
    """-1: no logprobs; 0: that of the token; k: and the k most probable tokens with theirs."""
    forced_ids: IntArray
    """Tokens that are already known, whose logprobs are wanted; NO_TOKEN: choose one."""
    is_ranked: BoolArray
    """For beam search, with temperature 0: logits become logprobs before all of this, and what it makes of them is told
    as it is, so that beams whose tokens are banned or penalised lose against others, as in transformers."""
    bias: SparseBias | None = None
    history: History | None = None
    counted: Counted | None = None
    """Penalties of a row come from one of the two."""
    masks: TokenMasks | None = None
    only: OnlyTokens | None = None
    ranges: TokenRanges | None = None
    timestamps: TimestampRule | None = None


@dataclass(frozen=True, slots=True)
class Paging:
    """What a decoder's step needs beside its tokens: where the keys and values of its sequences lie.

    `cache_seqlens`: int32 `[num_seqs]`, how many keys each sequence has once those of this step are stored.
    `block_table`: int32 `[num_seqs, max_blocks]`, the blocks that hold them, in order; the rest of a row is 0.
    `slot_mapping`: int64 `[num_tokens]`, where each token's key and value go: block * block_size + place in it.
    `logit_rows`: int64 `[num_logits]`, the tokens of the batch after which a next one is wanted; one may be repeated.
    `block_copies`: int64 `[num_copies, 2]`, blocks (from, to) that are copied before anything is computed.
    `sources`: of encoder-decoders.
    """

    cache_seqlens: Int32Array
    block_table: Int32Array
    slot_mapping: IntArray
    logit_rows: IntArray
    sampling: Sampling
    block_copies: IntArray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    sources: "Sources | None" = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What the sequences of an encoder-decoder's step are answers to.

    `source_table`: int32 `[num_seqs, max_source_blocks]`, the blocks of the KV cache with the keys and values of each
    sequence's source, in order; the rest of a row is 0. Beams of one source have the same.
    `source_seqlens`: int32 `[num_seqs]`, how many tokens or frames these are.
    `batch`: sources that are new, to be encoded before anything is decoded; None: all are in the cache. Its arrays
    are the encoder's, among them `slot_mapping`: where the keys and values of each of its tokens go.
    `weight_rows`: int64 `[num_weight_rows]`, the tokens of the step whose weights of cross-attention are wanted, in
    ascending order, of a model that tells them: its output CROSS_WEIGHTS, `[num_weight_rows, num_heads, num_keys]`.
    """

    source_table: Int32Array
    source_seqlens: Int32Array
    batch: "Batch | None" = None
    weight_rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences laid end to end, with no padding between or after them.

    `arrays`: what the model reads of these, as `INPUTS` describes them; more may be there.
        `input_ids`, `position_ids`, `token_type_ids`: int64 `[num_tokens]`; positions restart at 0 in each sequence.
        `adapter_ids`: int64 `[num_tokens]`, the adapter that each is computed with, counted from 1; 0 for none.
        `num_prompt_tokens`: int32 `[num_seqs]`, tokens at the beginning of each sequence that pooling leaves out.
        `num_keys`: int32 `[num_seqs]`, how many of each sequence's first tokens are attended to.
        `logit_rows`: int64 `[num_logits]`, the tokens that a masked language model is to guess, in ascending order.
        `features`: float32 `[num_tokens, num_features]`, in place of token ids: what was heard, frame by frame.
        `slot_mapping`: int64 `[num_tokens]`, of sources: see `Sources`.
    `cu_seqlens`: int32 `[num_seqs + 1]`, starts at 0, strictly increasing, ends at `num_tokens`.
    `max_seqlen`: length of the longest sequence.

    For decoders a sequence is what is computed of it in this step: a prompt or a chunk of one, or the newest token. Its
    positions go on where the last step ended, and `paging` says where its past lies.
    """

    arrays: Arrays
    cu_seqlens: Int32Array
    max_seqlen: int
    paging: Paging | None = None
    outputs: frozenset[str] | None = None
    """Names of `EngineInfo.outputs` that are wanted; None: all."""

    @property
    def num_tokens(self) -> int:
        return int(self.cu_seqlens[-1])

    @property
    def num_seqs(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def seqlens(self) -> Int32Array:
        return np.diff(self.cu_seqlens)

    @property
    def num_logits(self) -> int:
        """Rows of logits that a model over words computes."""
        rows = self.arrays.get("logit_rows", ()) if self.paging is None else self.paging.logit_rows
        return len(rows)


def find_middles(cu_seqlens: Int32Array) -> IntArray:
    """`logit_rows` where nobody says what is to be guessed: the token in the middle of each sequence."""
    middles: IntArray = (cu_seqlens[:-1].astype(np.int64) + cu_seqlens[1:]) // 2
    return middles


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One token for each row of logits, in the order of `Paging.logit_rows`."""

    token_ids: IntArray
    """`[num_logits]`; NO_TOKEN where a row's logits are not finite."""
    logprobs: FloatArray
    """`[num_logits]`, of those tokens; NaN where they were not asked for."""
    top_ids: IntArray
    top_logprobs: FloatArray
    """`[num_logits, max(num_top)]`, the most probable first; rows that asked for fewer are filled up with NaN."""
    draft_ids: IntArray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """`[num_logits, num_drafts]`: what a draft model expects to follow each row's token; nothing without one."""


@dataclass(frozen=True, slots=True)
class Output:
    """What one step computed."""

    arrays: dict[str, FloatArray]
    """By the names of `EngineInfo.outputs`, in their dimensions and in the order of the batch: those that the batch
    wants. Not a decoder's logits, of which it makes `tokens`."""
    tokens: SampledTokens | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the model computed numbers."""
        has_tokens = self.tokens is None or bool((self.tokens.token_ids != NO_TOKEN).all())
        return has_tokens and all(bool(np.isfinite(values).all()) for values in self.arrays.values())
