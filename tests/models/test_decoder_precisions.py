"""Every decoder in every precision, by the kernels of every instruction set: it starts, it is the model, and a request
alone gets the numbers that it gets in any batch, its prompt at once or in pieces."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from paging import chunks, compute_logits, then_tokens, whole
from tiny_decoders import CONFIGS, make_decoder, make_ids
from tiny_engines import BEST, ONNX, ROUNDING, Captured, Find, allow, capture_model, compute_rows, list_cases

from models.decoder_layers import Decoder
from runtime.config import UnusableConfig
from tests.kernels.emulated import COMPILED
from tests.tolerances import CACHE_TOLERANCES, DECODER_TOLERANCES, EXPERTS_TOLERANCES, check_close

OFTEN = ["llama-biased", "gpt2", "mistral", "qwen2", "qwen3", "gemma", "gemma2"]
"""One of each file in models/ of those that came first."""
IN_INT8 = ["cohere2", "falcon-grouped", "gemma3_text", "gpt_neox", "olmo2", "phi3", "qwen3_moe"]
"""What others put together in another way."""
SEQLENS = [1, 2, 15, 16, 17, 33, 49, 64]
"""Around the borders of blocks, of tiles and of panels."""
STEEP = {"llama-longrope": 2.0, "phi3-longrope": 2.0}
"""Rotations that are scaled up make scores so large that rounding counts for more."""
IDS = make_ids(SEQLENS)
WAYS = {
    "chunks": chunks(SEQLENS, [1, 1, 7, 15, 16, 17, 30, 49]),
    "tokens": then_tokens(SEQLENS, [1, 1, 11, 15, 13, 31, 45, 64]),
}


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_decoder(name, tmp_path_factory.mktemp(name))))


def compute_expected(captured: Captured) -> npt.NDArray[np.float32]:
    assert isinstance(captured.module, Decoder)
    logits: npt.NDArray[np.float32] = compute_logits(captured.module, IDS, whole(SEQLENS)).numpy()
    return logits


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(CONFIGS, OFTEN, IN_INT8))
def test_every_precision(find: Find, name: str, kernels: str, precision: str) -> None:
    """With the cache that `kv_cache: {dtype: auto}` gives it."""
    engine = find(name).build(kernels, precision)
    rows = compute_rows(engine, IDS, whole(SEQLENS))
    tolerances = EXPERTS_TOLERANCES if "moe" in name or "mixtral" in name else DECODER_TOLERANCES
    tolerance = allow(tolerances[precision].times(STEEP.get(name, 1.0)), kernels, precision)
    check_close(rows, compute_expected(find(name)), tolerance=tolerance)
    others = {way: compute_rows(engine, IDS, steps) for way, steps in WAYS.items()}
    others["alone"] = np.concatenate([compute_rows(engine, [each], whole([len(each)])) for each in IDS])
    for way, found in others.items():
        if kernels in ROUNDING:
            check_close(found, rows, tolerance=tolerance, what=way)
        else:
            np.testing.assert_array_equal(found, rows, err_msg=way)
    assert engine.info.kv_cache_dtype == ("fp32" if precision == "fp32" or kernels == ONNX else "bf16")
    assert engine.info.precision == precision and not engine.info.unplanned_ops


@pytest.mark.parametrize("dtype", CACHE_TOLERANCES)
@pytest.mark.parametrize("kernels", ["torch", *COMPILED])
def test_every_cache(find: Find, kernels: str, dtype: str) -> None:
    """Its type is the kernels' to know: half as wide as captured, or with scales between its heads."""
    captured = find("llama-biased")
    engine = captured.build(kernels, "fp32", kv_cache={"dtype": dtype})
    rows = compute_rows(engine, IDS, whole(SEQLENS))
    check_close(rows, compute_expected(captured), tolerance=CACHE_TOLERANCES[dtype])
    found = compute_rows(engine, IDS, WAYS["tokens"])
    if kernels in ROUNDING:
        check_close(found, rows, tolerance=CACHE_TOLERANCES[dtype])
    else:
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize(("has_bf16", "precision"), [(False, "fp32"), (True, "bf16")])
@pytest.mark.parametrize("name", [OFTEN[0], *(pytest.param(each, marks=pytest.mark.slow) for each in OFTEN[1:])])
def test_auto(find: Find, name: str, has_bf16: bool, precision: str) -> None:
    engine = find(name).build(BEST, "auto", has_bf16=has_bf16)
    assert (engine.info.precision, engine.info.kv_cache_dtype) == (precision, precision)
    named = find(name).build(BEST, precision)
    np.testing.assert_array_equal(*(compute_rows(each, IDS, WAYS["chunks"]) for each in (engine, named)))


def test_fp16_is_refused_on_a_cpu(find: Find) -> None:
    with pytest.raises(UnusableConfig, match=r"engine\.precision fp16"):
        find("llama-biased").build(BEST, "fp16")
