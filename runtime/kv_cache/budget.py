"""How many blocks the KV cache gets: what a byte budget leaves after weights and the planned peak of activations."""

import os
from pathlib import Path

import torch

from runtime.config import KVCacheConfig, UnusableConfig
from runtime.kv_cache.blocks import count_blocks

CPU_SHARE, GPU_SHARE = 0.5, 0.9
"""Of the free memory, where no budget is set."""


def plan_blocks(
    config: KVCacheConfig,
    *,
    block_bytes: int,
    weight_bytes: int,
    activation_bytes: int,
    max_sequences: int,
    max_input_tokens: int,
    device: torch.device,
    share: float,
) -> int:
    """Blocks, the scratch block included.

    `share`: the part of the free memory that this engine may take, where others of its device take theirs; it does not
    concern a configured budget.

    Raises UnusableConfig where not even one sequence of `max_input_tokens` has room.
    """
    useful = max_sequences * count_blocks(max_input_tokens) + 1
    least = count_blocks(max_input_tokens) + 1
    if config.budget_mb is None:
        # Weights are there already; activations are not.
        left = int(find_free_bytes(device) * share) - activation_bytes
    else:
        left = int(config.budget_mb * 2**20) - weight_bytes - activation_bytes
    fitting = left // block_bytes
    if fitting < least:
        what = "the memory that is free" if config.budget_mb is None else f"kv_cache.budget_mb {config.budget_mb}"
        taken_bytes = weight_bytes + activation_bytes
        raise UnusableConfig(
            f"engine: {what} leaves {max(left, 0) / 2**20:.1f} MB for the KV cache beside {taken_bytes / 2**20:.1f} MB "
            f"of weights and activations, but one sequence of {max_input_tokens} tokens needs "
            f"{least * block_bytes / 2**20:.1f} MB. Raise budget_mb, lower limits.max_input_tokens or "
            "limits.max_batch_tokens, or set kv_cache.dtype to int8"
        )
    return min(useful, fitting)


def find_free_bytes(device: torch.device) -> float:
    """What may be taken of the free memory of the device, or of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * GPU_SHARE
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free * CPU_SHARE
