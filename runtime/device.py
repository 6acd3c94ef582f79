"""Whether a configured device is there."""

import torch

from runtime.config import UnusableConfig


def check_device(device: torch.device) -> None:
    """Raises UnusableConfig."""
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise UnusableConfig(
            "engine.device cuda: this torch finds no CUDA device. Set device to cpu, or mend the driver"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UnusableConfig(
            f"engine.devices names {device.index}, and the last CUDA device that this torch finds is {count - 1}. Name "
            "those that are there, or show the server more of them (CUDA_VISIBLE_DEVICES)"
        )
