"""How many threads a step computes on."""

import torch


def use_threads(num_threads: int) -> None:
    """On the thread that is about to compute. OpenMP's number belongs to the thread that sets it, and a new thread
    begins with one for each core of the machine; compiled kernels have teams of their own, as large as OpenMP's."""
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
