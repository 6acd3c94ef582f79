"""What ONNX Runtime's graphs read beside a batch: which sequences attention pads together. Pure numpy.

ONNX Runtime has no packed attention on CPUs. Everything else of a graph stays packed, and attention takes the batch in
groups of similar length, each padded to its own longest, so that one long text does not pad forty short ones
(FasterTransformer and Effective Transformer pad all to the batch's longest, here and there around attention).
"""

from itertools import pairwise

import numpy as np

from runtime.batch import Arrays, Int32Array, IntArray

ONNX_RUNTIME = "onnxruntime"
"""What its kernels are called in `EngineInfo.kernels`."""
CACHE = "kv_cache"
"""The input of a layer's part of the cache is called after this and the layer's number; what is given back has `.out`
behind it."""
ATTENTION_INPUTS: dict[str, list[int | str]] = {
    "seq_ids": ["num_tokens"],
    "groups": ["num_groups", 4],
    "group_order": ["num_seqs"],
    "group_seqlens": ["num_seqs"],
    "pad_index": ["num_padded"],
    "unpad_index": ["num_tokens"],
}
"""What a session reads beside the batch, all int64.

`seq_ids`: the sequence of each token. `group_order`: the sequences by group; `group_seqlens`: how many tokens each of
them has. `groups`: of each group its first sequence in that order, their number, its first place among all padded ones,
and its tokens a sequence, padded. `pad_index`: the token at each padded place, of a place of none the sequence's last;
`unpad_index`: the place of each token.
"""
STEP = 8
"""Lengths are rounded up to multiples for choosing groups: a few padded tokens cost less than telling them apart."""
MAX_PAIRS = 1 << 20
"""Of tokens and keys in a group of several sequences: their scores are in memory together, for every head."""
GROUP_COST = 200.0
TOKEN_COST = 1.0
PAIR_COST = 0.02
"""Of a group, of a padded token, and of a padded pair of a token and a key, in one unit. On MiniLM's mixes anything
from 30 to 300 for a group is as fast; 1,500 is slower by a tenth."""


def make_groups(seqlens: Int32Array, key_seqlens: Int32Array) -> Arrays:
    """`ATTENTION_INPUTS` of sequences with so many tokens in this step, which look at so many keys."""
    order = np.lexsort((seqlens, -(-key_seqlens // STEP))).astype(np.int64)
    lengths, keys = seqlens[order].astype(np.int64), key_seqlens[order].astype(np.int64)
    starts = split(lengths, keys)
    ends = [*starts[1:], len(order)]
    widths = np.array([lengths[start:end].max() for start, end in zip(starts, ends, strict=True)])
    counts = np.diff([*starts, len(order)])
    first_places = np.cumsum(widths * counts) - widths * counts
    table = np.stack([np.array(starts), counts, first_places, widths], axis=1).astype(np.int64)
    return {
        "seq_ids": np.repeat(np.arange(len(order), dtype=np.int64), seqlens),
        "groups": table,
        "group_order": order,
        "group_seqlens": lengths,
        **pad(order, lengths, np.repeat(widths, counts), seqlens),
    }


def pad(order: IntArray, lengths: IntArray, widths: IntArray, seqlens: Int32Array) -> Arrays:
    """`lengths` and `widths` of each sequence, in the order of the groups."""
    borders = np.concatenate([[0], np.cumsum(seqlens, dtype=np.int64)])
    first_tokens, first_places = borders[order], np.cumsum(widths) - widths
    place = np.arange(int(widths.sum())) - np.repeat(first_places, widths)
    pad_index = np.repeat(first_tokens, widths) + np.minimum(place, np.repeat(lengths, widths) - 1)
    first_place_of = np.empty_like(order)
    first_place_of[order] = first_places
    unpad_index = np.arange(int(borders[-1])) + np.repeat(first_place_of - borders[:-1], seqlens)
    return {"pad_index": pad_index.astype(np.int64), "unpad_index": unpad_index.astype(np.int64)}


def split(lengths: IntArray, keys: IntArray) -> list[int]:
    """Where groups begin, of sequences sorted by keys and tokens as both are rounded, at the least cost (the dynamic
    programme of TurboTransformers: Fang et al., 2021)."""
    borders = find_classes(lengths, keys)
    num_classes = len(borders) - 1
    best, begin = np.zeros(num_classes + 1), np.zeros(num_classes + 1, np.int64)
    longest, most_keys = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for end in range(1, num_classes + 1):
        own = slice(borders[end - 1], borders[end])
        longest[:end] = np.maximum(longest[:end], lengths[own].max())
        most_keys[:end] = np.maximum(most_keys[:end], keys[own].max())
        padded = (borders[end] - borders[:end]) * longest[:end]
        pairs = padded * most_keys[:end]
        cost = best[:end] + GROUP_COST + TOKEN_COST * padded + PAIR_COST * pairs
        cost[:-1][pairs[:-1] > MAX_PAIRS] = np.inf
        begin[end] = int(cost.argmin())
        best[end] = cost[begin[end]]
    starts: list[int] = []
    end = num_classes
    while end:
        end = int(begin[end])
        starts.append(int(borders[end]))
    return starts[::-1]


def find_classes(lengths: IntArray, keys: IntArray) -> IntArray:
    """The borders of sequences that are alike, first and last included; no more of them than MAX_PAIRS allows."""
    rounded = np.stack([-(-lengths // STEP), -(-keys // STEP)])
    changes = np.flatnonzero((np.diff(rounded) != 0).any(0)) + 1
    borders = [0, *changes.tolist(), len(lengths)]
    found = [0]
    for start, end in pairwise(borders):
        most = max(1, MAX_PAIRS // int(lengths[start:end].max() * keys[start:end].max()))
        found += [*range(start + most, end, most), end]
    return np.array(found)
