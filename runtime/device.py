"""Whether a configured device is there."""

import torch

from runtime.config import UnusableConfig


def check_device(device: torch.device) -> None:
    """Raises UnusableConfig."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnusableConfig(
            "engine.device cuda: this torch finds no CUDA device. Set device to cpu, or mend the driver"
        )
