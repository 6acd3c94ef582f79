"""Worker: sentence-transformers' CrossEncoder and SparseEncoder, their modules on token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SparseEncoder
from torch import Tensor

from bench.peers.protocol import Embed, Rows, Sequences, pad, run_worker
from bench.tasks.session import MemorySession

Run = Callable[[dict[str, Tensor]], Rows]


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    torch.set_num_threads(threads)
    run = KINDS[options["kind"]](model)

    def embed(batch: Sequences) -> Rows:
        input_ids, mask = (torch.from_numpy(array) for array in pad(batch))
        with torch.inference_mode():
            return run({"input_ids": input_ids, "attention_mask": mask})

    return lambda batches: [embed(batch) for batch in batches]


def open_cross_encoder(model: Path) -> Run:
    """As `predict` runs it; logits, before the sigmoid."""
    encoder = CrossEncoder(str(model), device="cpu").eval()
    return lambda features: encoder(features)["scores"].numpy()


def open_sparse_encoder(model: Path) -> Run:
    """As `encode` runs it, sparse tensors included; then how many tokens have a weight, and the sum of those."""
    encoder = SparseEncoder(str(model), device="cpu").eval()

    def run(features: dict[str, Tensor]) -> Rows:
        vectors = encoder(features)["sentence_embedding"].to_sparse().coalesce()
        rows, count = vectors.indices()[0], len(features["input_ids"])
        sums = torch.zeros(count).index_add_(0, rows, vectors.values())
        return np.stack([torch.bincount(rows, minlength=count).numpy(), sums.numpy()], axis=1).astype(np.float32)

    return run


KINDS: dict[str, Callable[[Path], Run]] = {"CrossEncoder": open_cross_encoder, "SparseEncoder": open_sparse_encoder}

if __name__ == "__main__":
    run_worker(MemorySession(load), None)
