"""BERT with random weights, ours and Hugging Face's, from texts' tokens on the host to their vectors there."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bench.gpu.target import Target
from models.bert import Bert
from models.config import EncoderConfig
from models.heads import EmbeddingHead, TextModel
from runtime.batch import Batch
from runtime.build import build_engine
from runtime.config import Precision
from runtime.engine import Engine
from runtime.engines.transfer import lay_out
from runtime.limits import BatchLimits

VOCAB_SIZE = 30_522
MAX_POSITIONS = 1024


@dataclass(frozen=True)
class Shape:
    """Of BERT-base unless said."""

    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12

    @classmethod
    def of(cls, target: Target) -> "Shape":
        return target.pick(cls(), cls(num_layers=1, hidden_size=64, num_heads=2))


def build_bert(shape: Shape) -> nn.Module:
    """Pooled by the mean and scaled to length 1; the same weights each time."""
    config = EncoderConfig(
        architecture="BertModel",
        model_type="bert",
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
        activation="gelu",
        max_position_embeddings=MAX_POSITIONS,
        type_vocab_size=2,
        norm_eps=1e-12,
        pad_token_id=0,
        embedding_size=shape.hidden_size,
        num_groups=shape.num_layers,
        layers_per_group=1,
        task_type_vocab_size=0,
        num_labels=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextModel(Bert(config), EmbeddingHead(("mean",), (), True)).eval().requires_grad_(False)


def build_padless(target: Target, shape: Shape, kind: str, precision: Precision, limits: BatchLimits) -> Engine:
    """An engine that has run its largest batch once."""
    engine = build_engine(build_bert(shape), target.configure(kind, precision), limits, lambda *_: None)
    engine.warmup(lambda *_: None)
    return engine


def pack(seqlens: Sequence[int]) -> Batch:
    """Random words, the same each time; the shortest first, as the server packs."""
    rng = np.random.default_rng(0)
    ordered = sorted(seqlens)
    return lay_out(ordered, rng.integers(1000, 30_000, sum(ordered)))


def spread_lengths(num_seqs: int, low: float, high: float) -> list[int]:
    """Evenly between both: their mean is the middle however few there are."""
    return [max(1, round(low + (high - low) * (index + 0.5) / num_seqs)) for index in range(num_seqs)]


def build_huggingface(target: Target, shape: Shape, *, is_compiled: bool = False) -> Callable[[Batch, int], None]:
    """Runs what is packed in a batch as rows padded to a length, in fp16 through SDPA, bf16 on a CPU; mean pooling and
    normalisation included, and waits for the vectors. Raises ModuleNotFoundError where transformers is not there."""
    transformers = importlib.import_module("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
        max_position_embeddings=MAX_POSITIONS,
        attn_implementation="sdpa",
    )
    dtype = target.pick(torch.float16, torch.bfloat16)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval().to(target.device, dtype)

    def compute(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden_states = bert(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden_states.dtype)
        return nn.functional.normalize(((hidden_states * weights).sum(1) / weights.sum(1)).float(), dim=-1)

    computed = torch.compile(compute, dynamic=False) if is_compiled else compute

    def run(batch: Batch, length: int) -> None:
        input_ids, mask = pad(batch, length)
        with torch.no_grad():
            computed(input_ids.to(target.device), mask.to(target.device)).cpu()

    return run


def pad(batch: Batch, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [num_seqs, length]."""
    mask = torch.arange(length)[None, :] < torch.from_numpy(batch.seqlens)[:, None]
    input_ids = torch.zeros(mask.shape, dtype=torch.long)
    input_ids[mask] = torch.from_numpy(batch.arrays["input_ids"])
    return input_ids, mask.long()
