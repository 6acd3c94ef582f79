"""When each token of a transcript is said: by dynamic time warping over what cross-attention looked at. Pure numpy.

Some heads of Whisper look at the sound of the word that is being written. Their weights are made comparable, smoothed
and averaged, and the cheapest way through them, on which neither tokens nor frames go backwards, says where each token
ends (`timing.py` of openai-whisper, `_extract_token_timestamps` in transformers; the warping: Sakoe & Chiba, 1978).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Costs = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
DIAGONAL, DOWN, RIGHT = 0, 1, 2
"""How a way comes to a token and a frame: from those before both, from the token before, from the frame before."""


def align_tokens(weights: Weights, filter_width: int) -> Places:
    """The frame at which each token ends: int64 [num_tokens].

    `weights` [num_tokens, num_heads, num_frames], of a token and a frame or more. A token looks at the sound of the one
    that is to be written behind it, so that it ends with the first frame that it is at. `filter_width`: odd.
    """
    deviation = weights.std(axis=0)
    # Of a frame that all tokens look at alike nothing can be learned.
    normed = (weights - weights.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    smoothed = np.mean([filter_median(head, filter_width) for head in normed.transpose(1, 0, 2)], axis=0)
    tokens, frames = warp(-smoothed.astype(np.float64))
    found: Places = frames[np.diff(tokens, prepend=-1) > 0]
    return found


def filter_median(rows: Weights, width: int) -> Weights:
    """Of each number and its neighbours along a row [num_rows, length]; what lies beyond an end is mirrored. A row that
    is too short for that stays as it is."""
    margin = width // 2
    if rows.shape[1] <= margin:
        return rows
    padded = np.pad(rows, ((0, 0), (margin, margin)), mode="reflect")
    shifted = [padded[:, first : first + rows.shape[1]] for first in range(width)]
    # Bubble sort of whole arrays, as far as the middle: numpy's own sorting takes 20 times as long for few numbers.
    for least in range(margin + 1):
        for place in range(width - 1, least, -1):
            pair = shifted[place - 1 : place + 1]
            shifted[place - 1 : place + 1] = np.minimum(*pair), np.maximum(*pair)
    return shifted[margin]


def warp(costs: Costs) -> tuple[Places, Places]:
    """The cheapest way from the first token and frame to the last of `costs` [num_tokens, num_frames], one step at a
    time: the token and the frame of each place on it.

    All places of a diagonal, where token and frame add to the same, are found at once. Sums are rounded to fp32, and of
    equal ways the one along the frames is taken, so that the way is the same as in openai-whisper.
    """
    num_tokens, num_frames = costs.shape
    num_diagonals = num_tokens + num_frames - 1
    padded = np.pad(costs, ((0, 0), (0, num_tokens)), constant_values=np.inf)
    # A row that is one shorter than it was begins one place further to the left than the one above it.
    by_diagonal = padded.ravel()[:-num_tokens].reshape(num_tokens, num_diagonals).T
    steps = np.empty((num_diagonals, num_tokens), np.int8)
    # Of the last diagonal and the one before it, by token, behind a place for none.
    before, last = (np.full(num_tokens + 1, np.inf, np.float32) for _ in range(2))
    before[0] = 0
    for diagonal, added in enumerate(by_diagonal):
        both, down, right = before[:-1], last[:-1], last[1:]
        is_both, is_down = (both < down) & (both < right), (down < both) & (down < right)
        steps[diagonal] = np.where(is_both, DIAGONAL, np.where(is_down, DOWN, RIGHT))
        before, last = last, np.full(num_tokens + 1, np.inf, np.float32)
        last[1:] = added + np.where(is_both, both, np.where(is_down, down, right))
    return trace_back(steps, num_frames)


def trace_back(steps: Array, num_frames: int) -> tuple[Places, Places]:
    """From the end to the beginning, and turned round. `steps`: by diagonal and token."""
    token, frame = steps.shape[1] - 1, num_frames - 1
    places = [(token, frame)]
    while token > 0 or frame > 0:
        step = RIGHT if token == 0 else DOWN if frame == 0 else steps[token + frame, token]
        token -= step != RIGHT
        frame -= step != DOWN
        places.append((token, frame))
    tokens, frames = np.array(places[::-1], np.int64).T
    return tokens, frames
