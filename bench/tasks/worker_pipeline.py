"""Worker: transformers' pipelines for text and token classification, their forward pass on padded batches."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline, pipeline

from bench.peers.protocol import Embed, Rows, Sequences, drop_padding, pad, serve

NAMES = {"BertForSequenceClassification": "text-classification", "BertForTokenClassification": "token-classification"}


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    torch.set_num_threads(threads)
    (architecture,) = json.loads((model / "config.json").read_text())["architectures"]
    classify = pipeline(NAMES[architecture], model=str(model), dtype=torch.float32, device="cpu")
    return lambda batches: [run(classify, batch) for batch in batches]


def run(classify: Pipeline, batch: Sequences) -> Rows:
    """Logits. The pipeline hands through what belongs to tokens, for what it makes of logits afterwards."""
    input_ids, mask = pad(batch)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    if classify.task == "token-classification":
        inputs |= {"special_tokens_mask": None, "sentence": None, "is_last": True}
    return drop_padding(classify.forward(inputs)["logits"].numpy(), mask)


if __name__ == "__main__":
    serve(load)
