"""Whether a model computes numbers in fp16, which has none over 65,504: a sum of layers that grows past it is infinite,
and what is made of that is NaN, in every answer or in some."""

import numpy as np

from runtime.batch import NO_TOKEN, Batch, Output
from runtime.config import UnusableConfig
from runtime.engine import Engine


def check_range(engine: Engine, batch: Batch) -> None:
    """Raises UnusableConfig where what an engine in fp16 computes of a batch is not finite."""
    if not is_finite(engine.run(batch)):
        raise UnusableConfig(
            f"engine.precision fp16: of {batch.num_tokens} random tokens this model computes NaN, because its sums "
            "leave the range of fp16. Set precision to bf16, or to fp32 on devices without it"
        )


def is_finite(output: Output) -> bool:
    has_tokens = output.tokens is None or bool((output.tokens.token_ids != NO_TOKEN).all())
    return has_tokens and all(bool(np.isfinite(values).all()) for values in output.arrays.values())
