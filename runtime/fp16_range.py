"""Whether a model computes numbers in fp16, which has none over 65,504: a sum of layers that grows past it is infinite,
and what is made of that is NaN, in every answer or in some."""

from runtime.batch import Batch
from runtime.config import UnusableConfig
from runtime.engine import Engine


def check_range(engine: Engine, batch: Batch) -> None:
    """Raises UnusableConfig where what an engine in fp16 computes of a batch is not finite."""
    if not engine.run(batch).is_finite:
        raise UnusableConfig(
            f"engine.precision fp16: of {batch.num_tokens} random tokens this model computes NaN, because its sums "
            "leave the range of fp16. Set precision to bf16, or to fp32 on devices without it"
        )
