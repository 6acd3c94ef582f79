"""Every decoder family against transformers, on tiny random models: logits after every token, in any steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paging import Steps, chunks, compute_logits, then_tokens, whole
from tiny_decoders import CONFIGS, RARE, make_decoder, make_ids, run_alone
from tiny_models import Ids, TinyModel
from torch import Tensor

from models.decoder_layers import Decoder
from models.load import load_model
from runtime.kv_cache.layout import KVLayout
from tests.tolerances import EXPERTS_TOLERANCES, SAME_ENGINE, check_close

SEQLENS = [17, 33, 5, 80, 6, 16]
"""Around the borders of blocks, and as long as the models take."""

CASES = [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in CONFIGS]
WAYS: dict[str, Steps] = {
    "whole": whole(SEQLENS),
    "chunks": chunks(SEQLENS, [17, 8, 2, 19, 1, 16]),
    "tokens": then_tokens(SEQLENS, [16, 32, 1, 50, 4, 1]),
}


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_decoder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def module(model: TinyModel) -> Decoder:
    module = load_model(model.directory, model.info).fill()
    assert isinstance(module, Decoder)
    return module


@pytest.fixture(scope="module")
def ids() -> list[Ids]:
    return make_ids(SEQLENS)


@pytest.fixture(scope="module")
def expected(model: TinyModel, ids: list[Ids]) -> Tensor:
    return run_alone(model.theirs, ids)


@pytest.mark.parametrize("way", WAYS)
def test_logits_match_transformers(module: Decoder, ids: list[Ids], expected: Tensor, way: str) -> None:
    check_close(compute_logits(module, ids, WAYS[way]), expected, what=way)


def test_greedy_answers_match_transformers(model: TinyModel, module: Decoder, ids: list[Ids]) -> None:
    """Token by token over the cache."""
    prompt, num_tokens = torch.from_numpy(ids[0]), 20
    model.theirs.generation_config.eos_token_id = None
    with torch.no_grad():
        answer = model.theirs.generate(prompt[None], do_sample=False, max_new_tokens=num_tokens, pad_token_id=0)[0]
    length = len(prompt) + num_tokens
    logits = compute_logits(module, [answer.numpy()], then_tokens([length], [len(prompt)]))
    assert logits.argmax(1)[len(prompt) - 1 : -1].tolist() == answer[len(prompt) :].tolist()


def test_logits_of_chosen_rows(module: Decoder, ids: list[Ids], expected: Tensor) -> None:
    """In any order, and one twice: as for several answers to one prompt."""
    first = ids[0][:5]
    cu_seqlens, num_keys = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
    kv_cache = module.kv_layout(torch.float32).allocate(1, torch.device("cpu"))
    places, rows = torch.arange(5), torch.tensor([4, 1, 4])
    block_table = torch.zeros(1, 1, dtype=torch.int32)
    with torch.no_grad():
        logits = module(torch.from_numpy(first), places, cu_seqlens, 5, places, block_table, num_keys, rows, kv_cache)[
            "logits"
        ]
    assert logits.dtype == torch.float32
    check_close(logits, expected[rows])
    check_close(logits[0], logits[2], tolerance=SAME_ENGINE)


def test_layout_of_the_cache(model: TinyModel, module: Decoder) -> None:
    config = model.theirs.config
    num_kv_heads = getattr(config, "num_key_value_heads", 4)
    if config.model_type == "falcon":
        num_kv_heads = config.num_kv_heads if config.new_decoder_architecture or not config.multi_query else 1
    head_dim = getattr(config, "head_dim", None) or 8
    expected = KVLayout(config.num_hidden_layers, num_kv_heads, head_dim, torch.int8)
    assert module.kv_layout(torch.int8) == expected


def test_cache_of_another_type(module: Decoder, ids: list[Ids], expected: Tensor) -> None:
    logits = compute_logits(module, ids, WAYS["chunks"], torch.bfloat16)
    has_experts = module.config.experts is not None
    check_close(logits, expected, torch.bfloat16, tolerance=EXPERTS_TOLERANCES["bf16"] if has_experts else None)


def test_longrope_is_that_of_short_texts_where_none_are_longer(tmp_path: Path) -> None:
    made = make_decoder("phi3-longrope", tmp_path)
    module = load_model(tmp_path, replace(made.info, max_input_tokens=4)).fill()
    assert isinstance(module, Decoder)
    ids = make_ids([4, 2])
    check_close(compute_logits(module, ids, whole([4, 2])), run_alone(made.theirs, ids))
