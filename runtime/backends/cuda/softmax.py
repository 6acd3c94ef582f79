"""The running softmax of a tile of queries, and how exactly matrices are multiplied for it.

Scores are powers of two: there is log2(e) in their scale, because devices have an instruction for 2 ** x.
"""

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


def matrix_precision(dtype: torch.dtype) -> str:
    """How matrix instructions take fp32: in three products of TF32, by which hardly a bit is lost (Ootomo, Yokota,
    2022). Other types are multiplied as they are."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


@triton.jit
def add_keys(acc, top, total, scores, values, PRECISION: tl.constexpr):
    """A tile of keys more: the weighted sum of values, each row's highest score, and the sum of its weights (Milakov,
    Gimelshein, 2018; Dao, 2023). A score of -inf weighs 0, also where there are no others."""
    highest = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - base[:, None])
    faded = tl.exp2(top - base)
    total = total * faded + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * faded[:, None], input_precision=PRECISION)
    return acc, highest, total


@triton.jit
def divide_weights(acc, total):
    """The mean of the values; 0 of none."""
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
