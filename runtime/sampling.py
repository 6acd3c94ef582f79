"""Logits become tokens: what `Sampling` describes, for all rows at once.

Whatever is sparse stays so: penalties and biases touch the logits of the tokens they name, and only the rows that ask
for randomness or logprobs pay for them. A step of greedy rows without extras is one argmax.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.batch import (
    NO_TOKEN,
    BoolArray,
    Counted,
    FloatArray,
    History,
    IntArray,
    OnlyTokens,
    SampledTokens,
    Sampling,
    SparseBias,
    TimestampRule,
    TokenMasks,
    TokenRanges,
)
from runtime.sampling_filters import DrawTokens, draw_tokens, rank_first, take_rows

PenaliseCounted = Callable[[Tensor, Counted, Sampling], None]
"""Changes the logits of rows by what stands before them, in place, as the penalties of a history do."""

BITS = (np.arange(256)[:, None] >> np.arange(8)) & 1
BYTE_BIAS = np.where(BITS, np.float32(0), np.float32(-np.inf))
"""fp32 [256, 8]: what each bit of a byte, the lowest first, adds to the logit of its token."""


@torch.inference_mode()
def sample(
    logits: Tensor, sampling: Sampling, draw: DrawTokens = draw_tokens, penalise: PenaliseCounted | None = None
) -> SampledTokens:
    """`logits` fp32 [num_logits, vocab_size] on any device; may be changed in place. `penalise`: of an engine that
    counts tokens.

    A row that holds NaN or +inf, or forbids every token, gets NO_TOKEN and no logprobs, even if its token was forced;
    the other rows do not notice. Tokens that are forbidden are not among the most probable ones: a row that allows
    fewer than `num_top` is filled up like one that asked for fewer.
    """
    adjust_logits(logits, sampling, penalise)
    best_ids, best = find_best(logits)
    is_usable = np.isfinite(best)
    if is_plain(sampling):
        return tell_nothing(np.where(is_usable, best_ids, NO_TOKEN))
    told = np.flatnonzero(is_usable & (sampling.num_top >= 0))
    told_logits = take_rows(logits, told)
    logprobs = find_logprobs(told_logits, sampling.is_ranked[told])
    top_ids, top_logprobs = find_top(told_logits, logprobs, told, sampling.num_top)

    token_ids = np.where(sampling.forced_ids >= 0, sampling.forced_ids, best_ids)
    drawn = np.flatnonzero(is_usable & (sampling.temperature > 0) & (sampling.forced_ids < 0))
    if len(drawn):
        token_ids[drawn] = draw(take_rows(logits, drawn), sampling, drawn)
    token_ids[~is_usable] = NO_TOKEN
    token_logprobs = np.full(len(logits), np.nan, np.float32)
    if len(told):
        token_logprobs[told] = logprobs[to_indices(np.arange(len(told)), token_ids[told], logits)].cpu().numpy()
    return SampledTokens(token_ids, token_logprobs, top_ids, top_logprobs)


def tell_nothing(token_ids: IntArray) -> SampledTokens:
    """Tokens without logprobs."""
    num_rows = len(token_ids)
    return SampledTokens(
        token_ids,
        np.full(num_rows, np.nan, np.float32),
        np.zeros((num_rows, 0), np.int64),
        np.zeros((num_rows, 0), np.float32),
    )


def is_plain(sampling: Sampling) -> bool:
    """Whether the best token of each row is all that is wanted."""
    return bool((sampling.temperature == 0).all() and (sampling.num_top < 0).all() and (sampling.forced_ids < 0).all())


def adjust_logits(logits: Tensor, sampling: Sampling, penalise: PenaliseCounted | None = None) -> None:
    """In place. NaN and +inf stay what they are, forbidden or not: they tell that the row cannot be used."""
    if sampling.is_ranked.any():
        normalise(logits, np.flatnonzero(sampling.is_ranked))
    if sampling.history is not None:
        penalise_repetition(logits, sampling.history, sampling.repetition_penalty)
        penalise_generated(logits, sampling.history, sampling.presence_penalty, sampling.frequency_penalty)
    if sampling.counted is not None:
        assert penalise is not None, "Only rows of an engine with counters are counted. This is a bug."
        penalise(logits, sampling.counted, sampling)
    if sampling.only is not None:
        keep_only(logits, sampling.only)
    if sampling.bias is not None:
        add_bias(logits, sampling.bias)
    if sampling.ranges is not None:
        forbid_ranges(logits, sampling.ranges)
    if sampling.masks is not None:
        forbid_tokens(logits, sampling.masks)
    if sampling.timestamps is not None:
        prefer_timestamps(logits, sampling.timestamps)


def normalise(logits: Tensor, rows: IntArray) -> None:
    found = take_rows(logits, rows)
    torch.log_softmax(found, -1, out=found)
    if found is not logits:
        logits[to_index(rows, logits)] = found


def penalise_repetition(logits: Tensor, history: History, penalty: FloatArray) -> None:
    used = penalty[history.rows] != 1
    rows, ids, _ = count_pairs(history.rows[used], history.ids[used], logits.shape[1])
    index = to_indices(rows, ids, logits)
    values, factors = logits[index], torch.tensor(penalty[rows], device=logits.device)
    logits[index] = torch.where(values > 0, values / factors, values * factors)


def penalise_generated(logits: Tensor, history: History, presence: FloatArray, frequency: FloatArray) -> None:
    used = history.is_generated & ((presence != 0) | (frequency != 0))[history.rows]
    rows, ids, counts = count_pairs(history.rows[used], history.ids[used], logits.shape[1])
    penalties = (presence[rows] + frequency[rows] * counts).astype(np.float32)
    logits[to_indices(rows, ids, logits)] -= torch.tensor(penalties, device=logits.device)


def keep_only(logits: Tensor, only: OnlyTokens) -> None:
    rows, places = np.unique(only.rows, return_inverse=True)
    found = logits[to_index(rows, logits)]
    kept = torch.full_like(found, -torch.inf)
    kept[to_indices(places, only.ids, logits)] = 0
    logits[to_index(rows, logits)] = torch.where(found.isnan() | found.isposinf(), found, kept)


def add_bias(logits: Tensor, bias: SparseBias) -> None:
    values = torch.tensor(bias.values, device=logits.device)
    logits.index_put_(to_indices(bias.rows, bias.ids, logits), values, accumulate=True)


def forbid_ranges(logits: Tensor, ranges: TokenRanges) -> None:
    """Adds -inf rather than writing it, so that NaN is not hidden."""
    for row, first, end in zip(ranges.rows.tolist(), ranges.firsts.tolist(), ranges.ends.tolist(), strict=True):
        logits[row, first:end] -= torch.inf


def forbid_tokens(logits: Tensor, masks: TokenMasks) -> None:
    """Adds -inf as well."""
    num_bytes = -(-logits.shape[1] // 8)
    mask_bytes = np.ascontiguousarray(masks.bits, "<u4").view(np.uint8)[:, :num_bytes]
    bias = BYTE_BIAS[mask_bytes].reshape(len(mask_bytes), 8 * num_bytes)[:, : logits.shape[1]]
    logits.index_add_(0, to_index(masks.rows, logits), torch.from_numpy(bias).to(logits.device))


def prefer_timestamps(logits: Tensor, rule: TimestampRule) -> None:
    """A row with NaN or +inf among its texts is left as it is."""
    for begin in np.unique(rule.begins).tolist():
        rows = rule.rows[rule.begins == begin]
        found = take_rows(logits, rows)
        is_timestamp = found[:, begin:].logsumexp(-1) > found[:, :begin].amax(-1)
        logits[to_index(rows, logits)[is_timestamp], :begin] = -torch.inf


def count_pairs(rows: IntArray, ids: IntArray, vocab_size: int) -> tuple[IntArray, IntArray, npt.NDArray[np.intp]]:
    """The distinct pairs of row and token, and how often each occurs."""
    keys, counts = np.unique(rows * vocab_size + ids, return_counts=True)
    return keys // vocab_size, keys % vocab_size, counts


def to_index(rows: IntArray, logits: Tensor) -> Tensor:
    return torch.tensor(rows, device=logits.device)


def to_indices(rows: IntArray, ids: IntArray, logits: Tensor) -> tuple[Tensor, Tensor]:
    return to_index(rows, logits), to_index(ids, logits)


def find_best(logits: Tensor) -> tuple[IntArray, FloatArray]:
    """The first largest logit of each row: its id, and itself, which is NaN if the row holds any.

    On CPUs by numpy, whose argmax takes an eighth of the time of torch's.
    """
    if logits.device.type == "cpu":
        values = logits.numpy()
        ids = values.argmax(-1)
        return ids, values[np.arange(len(ids)), ids]
    best = logits.argmax(-1)
    return best.cpu().numpy(), logits.gather(1, best[:, None])[:, 0].cpu().numpy()


def find_logprobs(logits: Tensor, is_ranked: BoolArray) -> Tensor:
    """Of rows `[num_told, vocab_size]` that are to be told; of ranked ones, what they are already."""
    if is_ranked.all():
        return logits
    logprobs = logits.log_softmax(-1)
    ranked = to_index(np.flatnonzero(is_ranked), logits)
    logprobs[ranked] = logits[ranked]
    return logprobs


def find_top(
    logits: Tensor, logprobs: Tensor, told: IntArray, num_top: npt.NDArray[np.int32]
) -> tuple[IntArray, FloatArray]:
    """`top_ids` and `top_logprobs` of SampledTokens. `logits`, `logprobs` [num_told, vocab_size]: the rows `told`."""
    shape = len(num_top), int(num_top.max(initial=0))
    top_ids, top_logprobs = np.full(shape, NO_TOKEN, np.int64), np.full(shape, np.nan, np.float32)
    num_first = min(shape[1], logits.shape[1])
    if num_first and len(told):
        ids = rank_first(logits, num_first)
        values = logprobs.gather(1, ids).cpu().numpy()
        is_wanted = (np.arange(num_first) < num_top[told, None]) & (values > -np.inf)
        top_ids[told, :num_first] = np.where(is_wanted, ids.cpu().numpy(), NO_TOKEN)
        top_logprobs[told, :num_first] = np.where(is_wanted, values, np.nan)
    return top_ids, top_logprobs
