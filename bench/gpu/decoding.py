"""Part `decode`: one more token for each of so many answers, of SmolLM2-135M's shape with random weights.

What bounds a step is memory: weights are read once, and of each answer its keys and values. The share is of the rate
of a large copy, measured in the same rounds.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bench.gpu.kernels import time_copy
from bench.gpu.part import Part
from bench.gpu.target import Target
from bench.timing import compare, format_ratio
from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.rotary import RotaryConfig
from runtime.build import build_engine
from runtime.config import Precision
from runtime.engine import Engine
from runtime.engines.transfer import make_batch
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.examples import page_alone
from runtime.limits import BatchLimits

HEADINGS = ["engine", "precision", "answers", "keys each", "step ms", "tokens/s", "of the copy's bytes/s (10-90 %)"]
CONCURRENT = (1, 32, 256)
PAST = 511


def build_smollm2(target: Target) -> Decoder:
    """30 layers of 9 heads of 64 that share 3 of keys and values; on a CPU two of them."""
    num_layers, vocab_size = target.pick(30, 2), target.pick(49_152, 256)
    config = DecoderConfig(
        architecture="LlamaForCausalLM",
        model_type="llama",
        vocab_size=vocab_size,
        hidden_size=576,
        num_layers=num_layers,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        activation="silu",
        norm_eps=1e-5,
        max_position_embeddings=2048,
        rotaries=(RotaryConfig(dim=64, theta=100_000.0),) * num_layers,
        windows=(-1,) * num_layers,
        softmax_scales=(64**-0.5,) * num_layers,
        has_qkv_bias=False,
        has_o_bias=False,
        has_mlp_bias=False,
        is_tied=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(config).eval().requires_grad_(False)


def build_decoder(target: Target, kind: str, precision: Precision, concurrent: tuple[int, ...], past: int) -> Engine:
    most = max(concurrent)
    limits = BatchLimits(max(most, 8), most, past + 1, max_batch_logits=most)
    engine = build_engine(build_smollm2(target), target.configure(kind, precision), limits, lambda *_: None)
    engine.warmup(lambda *_: None)
    return engine


def count_bytes(engine: Engine, num_seqs: int, past: int) -> float:
    """That a step cannot do without: of the cache whole blocks."""
    info = engine.info
    block_bytes = info.kv_cache_bytes / info.num_blocks
    return info.weight_bytes + num_seqs * -(-(past + 1) // BLOCK_SIZE) * block_bytes


def measure(part: Part, kind: str, precision: Precision, concurrent: tuple[int, ...], past: int) -> dict[str, object]:
    """All numbers of answers, in turn; the engine is let go of at the end."""
    engine = build_decoder(part.target, kind, precision, concurrent, past)
    copy, copied_bytes = time_copy(part.target)
    candidates: dict[str, Callable[[], object]] = {"copy": copy}
    for num_seqs in concurrent:
        batch = page_alone(make_batch([1] * num_seqs), num_blocks=engine.info.num_blocks, past=past)
        candidates[str(num_seqs)] = partial(engine.run, batch)
    comparison = compare(candidates, rounds=part.target.pick(40, 2), title=f"decode, {kind} {precision}")
    ceiling = copied_bytes / np.array(comparison.seconds["copy"])
    for num_seqs in concurrent:
        rates = count_bytes(engine, num_seqs, past) / np.array(comparison.seconds[str(num_seqs)])
        low, middle, high = np.percentile(rates / ceiling * 100, [10, 50, 90])
        step_s = comparison.median_s(str(num_seqs))
        cells = [f"{step_s * 1e3:.2f}", f"{num_seqs / step_s:.0f}", format_ratio((middle, low, high)) + " %"]
        part.rows.append([kind, precision, str(num_seqs), str(past + 1), *cells])
    bytes_by_answers = {str(num_seqs): count_bytes(engine, num_seqs, past) for num_seqs in concurrent}
    engine.close()
    return {"seconds": comparison.seconds, "bytes": bytes_by_answers, "copied_bytes": copied_bytes}


def time_decoding(part: Part) -> None:
    part.headings = HEADINGS
    part.note = "SmolLM2-135M's shape, random weights, greedy; from tokens on the host to tokens there."
    concurrent, past = part.target.pick(CONCURRENT, (1, 4)), part.target.pick(PAST, 15)
    part.run_cases(
        {
            f"{kind} {precision}": partial(measure, part, kind, precision, concurrent, past)
            for precision in part.target.decoder_precisions
            for kind in part.target.kinds
        }
    )
    series = {}
    for name, result in part.results.items():
        medians = [float(np.median(result["seconds"][str(num_seqs)])) for num_seqs in concurrent]
        series[name] = (concurrent, [num_seqs / each for num_seqs, each in zip(concurrent, medians, strict=True)])
    part.plot(series, x="answers at a time", y="tokens/s", title="Decoding, SmolLM2-135M's shape")
