"""What becomes of an error of a step: one that spoils that step, one of memory, or the device's last.

After most errors a CUDA device serves its process no more: each later call returns the same error (CUDA C++ Programming
Guide, "Error Checking"; `cudaErrorIllegalAddress` in the runtime's list of errors). Only a new process gets it back.
"""

import torch

from runtime.engine import DeviceLost, EngineError, OutOfMemory

OF_THE_DEVICE = ("CUDA error", "Triton Error [CUDA]")
"""What torch and Triton begin the device's errors with; cuBLAS's and cuDNN's come as torch's."""


def explain_failure(error: Exception, what: str) -> EngineError:
    """`what` has failed."""
    text = f"{what}: {error}"
    is_of_the_device = isinstance(error, torch.AcceleratorError) or any(mark in str(error) for mark in OF_THE_DEVICE)
    if isinstance(error, torch.OutOfMemoryError) or (is_of_the_device and "out of memory" in str(error)):
        return OutOfMemory(text)
    return DeviceLost(text) if is_of_the_device else EngineError(text)


def empty_cache() -> None:
    """Give back what torch's allocator keeps of a device's memory; nothing where no device was used."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
