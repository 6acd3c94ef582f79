"""Real models as engines and as transformers' modules, built once per test run."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.generation.decoders import NotAvailable, find_decoder
from models.info import read_info
from models.load import load_model
from runtime.build import build_engine
from runtime.config import EngineConfig, KVCacheConfig
from runtime.engine import Engine
from runtime.lazy_module import DraftModel
from runtime.limits import BatchLimits

LIMITS = BatchLimits(max_batch_tokens=256, max_batch_requests=64, max_input_tokens=256, max_batch_logits=128)


def find(name: str) -> Path:
    """The model's directory; skips the test where it cannot be had."""
    try:
        return find_decoder(name)
    except NotAvailable as error:
        pytest.skip(str(error))


@cache
def build(name: str, precision: str = "fp32", kv_dtype: str = "auto", draft: str = "") -> Engine:
    config = EngineConfig.model_validate(
        {"precision": precision, "kv_cache": KVCacheConfig(dtype=kv_dtype, budget_mb=4000)}
    )
    draft_model = DraftModel(load(draft), 3) if draft else None
    return build_engine(load(name), config, LIMITS, lambda *_: None, draft_model)


def load(name: str) -> Any:
    directory = find(name)
    return load_model(directory, read_info(directory)).fill()


@cache
def load_reference(name: str) -> Any:
    """transformers' module, fp32."""
    return AutoModelForCausalLM.from_pretrained(find(name), dtype=torch.float32).eval()


@torch.inference_mode()
def reference_logprobs(name: str, sequences: list[list[int]]) -> list[Tensor]:
    """Of the next token after each token: fp32 [len, vocab_size] per sequence. Padded on the right, which causal
    attention does not see."""
    model = load_reference(name)
    found = []
    for start in range(0, len(sequences), 16):
        group = sequences[start : start + 16]
        longest = max(len(sequence) for sequence in group)
        ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in group])
        logits = model(input_ids=ids, use_cache=False).logits.float()
        found += [row[: len(sequence)].log_softmax(-1) for row, sequence in zip(logits, group, strict=True)]
    return found
