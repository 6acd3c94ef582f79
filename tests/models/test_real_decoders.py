"""Real decoders against transformers: weights with outliers and answers with a meaning, which random ones lack."""

from collections.abc import Sequence

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from paging import Steps, chunks, compute_logits, then_tokens, whole
from tiny_decoders import run_alone
from tiny_models import Ids, TinyModel
from torch import Tensor

from bench.generation.decoders import SOURCES, NotAvailable, find_decoder
from models.decoder_layers import Decoder
from models.info import read_info
from models.load import load_model
from tests.tolerances import check_close

pytestmark = pytest.mark.network

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TEXTS = {
    "stories15m": ["Once upon a time", "Lily and Ben went to the park. They saw a big dog. " * 4, "The"],
    "smollm2-135m-instruct": ["The capital of France is", CHAT.format("What is 2+3?"), "def add(a, b):\n    return"],
}
"""microformer-gpt2 has no tokenizer."""
NEXT = {"stories15m": ",", "smollm2-135m-instruct": " Paris"}
"""After the first of them."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name.startswith("smollm2") else ()) for name in SOURCES],
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> TinyModel:
    try:
        directory = find_decoder(name)
    except NotAvailable as error:
        pytest.skip(str(error))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    torch.set_num_threads(1)
    return TinyModel(directory, theirs.eval(), read_info(directory))


@pytest.fixture(scope="module")
def module(model: TinyModel) -> Decoder:
    module = load_model(model.directory, model.info).fill()
    assert isinstance(module, Decoder)
    return module


@pytest.fixture(scope="module")
def ids(name: str, model: TinyModel) -> list[Ids]:
    if name not in TEXTS:
        random = np.random.default_rng(0)
        return [np.array([2, *random.integers(5, model.info.vocab_size, length)]) for length in (4, 60, 1)]
    tokenizer = tokenizers.Tokenizer.from_file(str(model.directory / "tokenizer.json"))
    return [np.array(encoding.ids) for encoding in tokenizer.encode_batch(TEXTS[name])]


@pytest.fixture(scope="module")
def expected(model: TinyModel, ids: list[Ids]) -> Tensor:
    return run_alone(model.theirs, ids)


def list_ways(seqlens: Sequence[int]) -> dict[str, Steps]:
    return {
        "whole": whole(seqlens),
        "chunks": chunks(seqlens, [3, 17, 1]),
        "tokens": then_tokens(seqlens, [max(1, seqlen - 5) for seqlen in seqlens]),
    }


def test_logits_match_transformers(module: Decoder, ids: list[Ids], expected: Tensor) -> None:
    for way, steps in list_ways([len(sequence) for sequence in ids]).items():
        check_close(compute_logits(module, ids, steps), expected, what=way)


def test_what_comes_next(name: str, model: TinyModel, module: Decoder, ids: list[Ids]) -> None:
    if name not in NEXT:
        pytest.skip("it writes numbers, not text")
    logits = compute_logits(module, ids[:1], whole([len(ids[0])]))
    tokenizer = tokenizers.Tokenizer.from_file(str(model.directory / "tokenizer.json"))
    assert tokenizer.decode([int(logits[-1].argmax())]) == NEXT[name]
