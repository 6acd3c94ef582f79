"""Several planned engines of one model, each in another precision; each batch runs in the one measured to be best."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from runtime.batch import Batch, Output
from runtime.engine import Engine, EngineInfo, MemoryStats, Progress
from runtime.precision_choice import PrecisionTable, measure_agreement, measure_table, recall_table

logger = logging.getLogger("padless")


class AdaptiveEngine:
    """`engines` by precision, the most exact first; `example(num_tokens)` makes a batch of random tokens of that size.

    Until `warmup` the most exact one runs everything. Mutable: `engines`, which loses those that are never chosen, and
    `table`.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        example: Callable[[int], Batch],
        *,
        known_agreement: dict[str, float],
        min_agreement: float,
        cache: Path,
    ) -> None:
        self.engines = dict(engines)
        self.example = example
        self.known_agreement = known_agreement
        self.min_agreement = min_agreement
        self.cache = cache
        exact = next(iter(engines))
        self.largest = engines[exact].info.max_batch_tokens
        self.table = PrecisionTable(((self.largest, exact),), {})

    @property
    def info(self) -> EngineInfo:
        """Weights are those of all engines; activations those of the one that takes most."""
        infos = [engine.info for engine in self.engines.values()]
        return replace(
            infos[0],
            precision="+".join(self.table.used),
            precision_reason=f"auto: {self.table}",
            precision_by_tokens=self.table.by_tokens,
            weight_bytes=sum(info.weight_bytes for info in infos),
            activation_bytes=sum(info.activation_bytes for info in infos),
            max_batch_tokens=min(info.max_batch_tokens for info in infos),
        )

    def warmup(self, progress: Progress) -> None:
        """Choose, by measurement or from what an earlier start has measured; drop what was not chosen; warm up."""
        table = recall_table(self.cache, lambda: self.measure(progress))
        if set(table.used) <= set(self.engines):
            self.table = table
        for name in [name for name in self.engines if name not in self.table.used]:
            self.engines.pop(name).close()
        logger.info("precision by size of batch: %s%s", self.table, describe(table, self.min_agreement))
        for engine in self.engines.values():
            engine.warmup(progress)

    def measure(self, progress: Progress) -> PrecisionTable:
        batches = [self.example(num_tokens) for num_tokens in list_sizes(self.largest)]
        sample = batches[len(batches) // 2]
        found = {name: engine.run(sample).arrays for name, engine in self.engines.items()}
        expected = next(iter(found.values()))
        agreement = {name: measure_agreement(arrays, expected) for name, arrays in found.items()} | self.known_agreement
        return measure_table(self.engines, batches, agreement, self.min_agreement, progress)

    def run(self, batch: Batch) -> Output:
        return self.engines[self.table.find(batch.num_tokens)].run(batch)

    def memory(self) -> MemoryStats:
        """Summed over the engines."""
        parts = [engine.memory() for engine in self.engines.values()]
        return MemoryStats(*(sum(getattr(part, field.name) for part in parts) for field in fields(MemoryStats)))

    def trim(self) -> None:
        for engine in self.engines.values():
            engine.trim()

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


def list_sizes(largest: int) -> list[int]:
    """Tokens: 16 and its powers of two below the largest batch, and that."""
    sizes = [16]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return [size for size in sizes if size < largest] + [largest]


def describe(table: PrecisionTable, min_agreement: float) -> str:
    """What was left out, and why."""
    left_out = [f"{name} with {value:.4f}" for name, value in table.agreement.items() if value < min_agreement]
    return f"; under min_cosine {min_agreement}: {', '.join(left_out)}" if left_out else ""
