"""Linear weights as e4m3 with one scale per output channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.ops.linear_fp8 import E4M3, round_to_e4m3
from runtime.quantization.weights import PART, align_rows


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """As `padless::linear_fp8` takes it: values e4m3 [out_features, in_features and zeros], scale fp32
    [out_features]."""

    values: Tensor
    scale: Tensor


def quantize_channels(weight: Tensor) -> FloatWeight:
    """Round `weight` [out_features, in_features]: the largest number of a channel becomes the largest of e4m3.

    Steps of floats grow with the numbers, so that other scales gain little: the best for each channel takes a tenth of
    the error off random ones of 384 inputs, and a thirtieth at 4096. Raises ValueError where weights are not finite.
    """
    values, scale = torch.empty_like(weight, dtype=E4M3), weight.new_empty(len(weight), dtype=torch.float32)
    step = max(1, PART // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        values[part], part_scale = round_to_e4m3(weight[part].detach().float())
        scale[part] = part_scale[:, 0]
    spoilt = int((~scale.isfinite()).sum())
    if spoilt:
        raise ValueError(f"the weights of {spoilt} of {len(scale)} output channels are not finite")
    return FloatWeight(align_rows(values), scale)
