"""Several planned engines of one model, each in another precision; each batch runs in the one chosen for its size."""

from collections.abc import Mapping
from dataclasses import fields, replace

from runtime.batch import Batch, Output
from runtime.config import Precision
from runtime.engine import Engine, EngineInfo, MemoryStats, Progress
from runtime.precision_choice import ChosenPrecision


class AdaptiveEngine:
    """`engines` by precision: all that `chosen` uses."""

    def __init__(self, engines: Mapping[Precision, Engine], chosen: ChosenPrecision) -> None:
        self.engines = engines
        self.chosen = chosen

    @property
    def info(self) -> EngineInfo:
        """Weights are those of all engines; activations, which each keeps for itself, too."""
        infos = [engine.info for engine in self.engines.values()]
        return replace(
            infos[0],
            precision="+".join(self.chosen.used),
            chosen=self.chosen,
            weight_bytes=sum(info.weight_bytes for info in infos),
            activation_bytes=sum(info.activation_bytes for info in infos),
            max_batch_tokens=min(info.max_batch_tokens for info in infos),
        )

    def warmup(self, progress: Progress) -> None:
        for engine in self.engines.values():
            engine.warmup(progress)

    def run(self, batch: Batch) -> Output:
        return self.engines[self.chosen.find(batch.num_tokens)].run(batch)

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
