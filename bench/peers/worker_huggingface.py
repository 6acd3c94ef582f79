"""Worker: Hugging Face transformers in PyTorch, as it is or compiled: by torch's own compiler or by zentorch's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedder import Embedder
from protocol import Embed, Rows, Sequences, pad, serve


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    torch.set_num_threads(threads)
    module = Embedder(model, dtype=getattr(torch, options["dtype"]))
    if options["compiler"] is None:
        return build(module, is_compiled=False)
    if options["compiler"] == "zentorch":
        import zentorch  # noqa: F401  (it makes itself known to torch)
    embed = build(torch.compile(module, backend=options["compiler"]), is_compiled=True)
    for num_seqs, length in ((2, 24), (3, 17), (1, 24), (1, 17)):  # compiles; a batch of one is a case of its own
        embed([[np.full(length, 1000, np.int32)] * num_seqs])
    return embed


def build(module: torch.nn.Module, *, is_compiled: bool) -> Embed:
    def embed(batches: Sequence[Sequences]) -> list[Rows]:
        with torch.inference_mode():
            return [module(*build_inputs(batch)).numpy() for batch in batches]

    def build_inputs(batch: Sequences) -> tuple[torch.Tensor, ...]:
        inputs = tuple(torch.from_numpy(array) for array in pad(batch))
        if is_compiled:
            for tensor in inputs:
                for dimension in (0, 1):
                    if tensor.shape[dimension] > 1:
                        torch._dynamo.mark_dynamic(tensor, dimension)
        return inputs

    return embed


if __name__ == "__main__":
    serve(load)
