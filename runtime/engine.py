"""The Engine protocol, and nothing concrete."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

from runtime.batch import ArraySpec, Batch, Output
from runtime.precision_choice import ChosenPrecision

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all) during long work."""


class EngineError(RuntimeError):
    """A step failed; the engine can run the next one."""


class OutOfMemory(EngineError):
    """The device has no memory for a step as large as this one."""


class DeviceLost(EngineError):
    """The device computes nothing more for this process: every further step would fail too."""


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes, and counts since the start. `reserved` is held from the system, `in_use` is the last step's plan."""

    weight_bytes: int = 0
    arena_reserved_bytes: int = 0
    arena_in_use_bytes: int = 0
    planned_peak_bytes: int = 0
    kv_cache_bytes: int = 0
    num_arena_allocations: int = 0
    plan_cache_hits: int = 0
    plan_cache_misses: int = 0

    def plus(self, other: "MemoryStats") -> "MemoryStats":
        """Of two programs together."""
        return MemoryStats(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was built and why, for the start-up lines and `/info`."""

    kind: str
    precision: str
    precision_reason: str
    device: str
    """As `EngineConfig.device_names` has it, once it is open."""
    threads: int
    outputs: tuple[ArraySpec, ...]
    """What the graph computes. The first is what calibration measures; a decoder's is its `logits`."""
    weight_bytes: int = 0
    activation_bytes: int = 0
    """Planned peak at the largest batch."""
    max_batch_tokens: int = 0
    """The largest batch that fits the memory cap; the configured budget where there is no cap."""
    graph_bytes: int = 0
    """`cuda_graphs`: what recorded steps hold beside the planned peak."""
    kernels: str = "torch"
    """The instruction set of the compiled CPU kernels, or torch."""
    chosen: ChosenPrecision | None = None
    """`auto`: what was chosen for this model, and by which measurements."""
    num_blocks: int = 0
    """Of the KV cache, the scratch block included; 0 of an encoder."""
    kv_cache_bytes: int = 0
    kv_cache_dtype: str = ""
    max_batch_logits: int = 0
    """The most rows of logits of a step."""
    num_counters: int = 0
    """Of as many sequences that have penalties it counts the tokens: see `runtime.batch.Counted`."""
    counter_bytes: int = 0
    """What these take once a request has penalties."""
    num_drafts: int = 0
    """Tokens that a draft model proposes after each one; 0 without one."""
    pads: bool = False
    """Each batch is computed as num_seqs rows of its longest sequence."""
    unplanned_ops: tuple[str, ...] = ()
    """Ops that still allocate their own result."""
    nodes: tuple[tuple[str, int], ...] = ()
    """ONNX Runtime's: how many nodes of the graph each of its providers computes, in order of preference; empty where
    it does not tell."""


class Engine(Protocol):
    """Runs packed batches, one at a time, on the thread that calls it."""

    @property
    def info(self) -> EngineInfo: ...

    def warmup(self, progress: Progress) -> None:
        """Run batches up to the largest one, so that no later batch allocates."""

    def run(self, batch: Batch) -> Output:
        """Compute one step. Raises EngineError; ValueError where the batch is over `info.max_batch_tokens`, or lacks an
        array that the model reads.

        A decoder changes its KV cache where the batch's `paging` says.
        """

    def memory(self) -> MemoryStats: ...

    def trim(self) -> None:
        """Give back memory that has long not been needed. Called when idle."""

    def close(self) -> None: ...
