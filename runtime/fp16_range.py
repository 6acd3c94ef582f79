"""Whether a model computes numbers in fp16, which has none over 65,504: a sum of layers that grows past it is infinite,
and what is made of that is NaN, in every answer or in some."""

from dataclasses import replace

import numpy as np
import torch

from runtime.batch import Batch
from runtime.config import UnusableConfig
from runtime.engine import Engine
from runtime.engines.decoder import Computes, DecoderEngine
from runtime.engines.transfer import make_batch
from runtime.kv_cache.examples import answer_sources, count_needed, page_alone
from runtime.kv_cache.layout import KVLayout


def check_range(engine: Engine, batch: Batch) -> None:
    """Raises UnusableConfig where what an engine in fp16 computes of a batch is not finite. Closes it."""
    is_finite = engine.run(batch).is_finite
    engine.close()
    if not is_finite:
        raise UnusableConfig(
            f"engine.precision fp16: of {batch.num_tokens} random tokens this model computes NaN, because its sums "
            "leave the range of fp16. Set precision to bf16, or to fp32 on devices without it"
        )


def check_generator(
    decoder: Computes,
    batch: Batch,
    layout: KVLayout,
    device: torch.device,
    encoder: Computes | None = None,
    sources: Batch | None = None,
) -> None:
    """The same of what `decoder` computes of a batch, over a cache of its own. `sources`: what `encoder` is given, and
    the batch answers: what it leaves in the cache is no output, but who looks at a key that is not finite is NaN."""
    num_blocks = count_needed(batch) + (0 if sources is None else count_needed(sources))
    engine = DecoderEngine(decoder, layout.allocate(num_blocks, device), layout.dtype_name, encoder)
    paged = page_alone(batch, num_blocks=count_needed(batch))
    check_range(engine, paged if sources is None else answer_sources(paged, sources))


def hear_noise(num_seqs: int, seqlen: int, num_features: int) -> Batch:
    """Sources of random numbers as large as those of sounds, the same each time."""
    batch = make_batch([seqlen] * num_seqs)
    features = np.random.default_rng(0).standard_normal((batch.num_tokens, num_features), np.float32)
    return replace(batch, arrays=batch.arrays | {"features": features})
