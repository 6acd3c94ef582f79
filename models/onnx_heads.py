"""What is made of an ONNX file's outputs for each head of a model: pooled by the directory's settings, or as it is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.head_modules import build_embedding_head, build_token_head, open_module_weights
from models.heads import EmbeddingHead, TokenEmbeddingHead
from models.info import ModelInfo
from models.keys import read_keys, require_number
from models.weights import check_weights
from runtime.backends.onnx.file import OnnxFile
from runtime.batch import ArraySpec
from runtime.config import UnusableConfig
from runtime.engines.onnx_file import FileHead
from runtime.lazy_module import LazyModule
from runtime.ops import pool

SENTENCE = "sentence_embedding"
ROWS = ("last_hidden_state", "token_embeddings")
"""What optimum calls the rows of the last layer, of models of transformers and of sentence-transformers."""
LOGITS = ("logits",)
BORDERS = ("start_logits", "end_logits")
PER_SEQUENCE, PER_TOKEN = 2, 3
"""Dimensions of an output."""


class AsItIs(nn.Module):
    """What the file gives is the answer."""

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        return {"rows": hidden_states}


class LargestHead(nn.Module):
    """Of each sequence the largest logit of every token of the vocabulary."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        return {"max_logits": pool.OP(hidden_states, cu_seqlens, "max")}


class SentenceHead(EmbeddingHead):
    """What a file has pooled, and has run through the modules behind that: scaled and cut, which is harmless twice."""

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return self.finish(hidden_states)


def build_head(directory: Path, info: ModelInfo, spec: ArraySpec, file: OnnxFile, *, pools: bool) -> FileHead:
    """`spec`: what the head is to give. `pools`: whether embeddings are made of rows, whatever else there is.

    Raises UnusableConfig where the file has no such output; ModelDirectoryError.
    """
    if info.task == "embed":
        return build_embedder(directory, info, spec, file, pools=pools)
    if info.task in ("token_embed", "multi_vector", "token_weights"):
        return build_rows_head(directory, info, spec, file)
    if info.task == "question_answering" and all(map(file.has_output, BORDERS)):
        return FileHead(BORDERS, "num_tokens", AsItIs(), spec)
    width = int(spec.dims[-1])
    if info.task == "classify":
        return FileHead((find(file, info, LOGITS, PER_SEQUENCE, width),), "num_seqs", AsItIs(), spec)
    name = find(file, info, LOGITS, PER_TOKEN, width)
    if info.task == "sparse":
        return FileHead((name,), "num_tokens", LargestHead(), spec)
    return FileHead((name,), "num_logits" if info.task == "fill_mask" else "num_tokens", AsItIs(), spec)


def build_embedder(directory: Path, info: ModelInfo, spec: ArraySpec, file: OnnxFile, *, pools: bool) -> FileHead:
    """A file that pools by itself cannot leave a prompt out."""
    told = file.told.output
    is_sentence = told is None and file.has_output(SENTENCE) and not pools and info.pools_prompt
    name = SENTENCE if is_sentence else told if told == file.find_output((), PER_SEQUENCE) else None
    if name is None:
        return build_rows_head(directory, info, spec, file)
    width = file.find_width(name)
    if width is not None and width < info.output_dim:
        raise UnusableConfig(
            f"engine.onnxruntime.output: {name} of {file.path} has {width} numbers, and the directory's settings say "
            f"{info.output_dim}. Name another output"
        )
    return FileHead((name,), "num_seqs", SentenceHead((), (), info.normalize, info.output_dim), spec)


def build_rows_head(directory: Path, info: ModelInfo, spec: ArraySpec, file: OnnxFile) -> FileHead:
    """With the directory's own modules and their weights."""
    folder = directory / info.transformer
    width = require_number(folder / "config.json", read_keys(folder), "hidden_size")
    name = find(file, info, ROWS, PER_TOKEN, width)
    build = ROW_HEADS[info.task]
    with torch.device("meta"):
        head = build(directory, width, info)
    weights = {f"chain.{key}": value for key, value in open_module_weights(directory, info.modules).items()}
    module = LazyModule(head.eval(), check_weights(head, weights, directory)).fill().requires_grad_(False)
    return FileHead((name,), "num_tokens", module, spec)


def build_plain(directory: Path, hidden_size: int, info: ModelInfo) -> nn.Module:
    return TokenEmbeddingHead()


ROW_HEADS: dict[str, Callable[[Path, int, ModelInfo], nn.Module]] = {
    "embed": build_embedding_head,
    "token_embed": build_plain,
    "multi_vector": build_token_head,
    "token_weights": build_token_head,
}


def find(file: OnnxFile, info: ModelInfo, names: Sequence[str], num_dims: int, width: int) -> str:
    """Raises UnusableConfig."""
    name = file.find_output(names, num_dims)
    if name is None:
        raise UnusableConfig(
            f"engine.onnxruntime.output: for task {info.task} an output of {num_dims} dimensions is needed, called "
            f"{' or '.join(names)}, and {file.path} gives {file.list_outputs()}. Name the one that is meant, or set "
            "task to what the file is for"
        )
    found = file.find_width(name)
    if found not in (None, width):
        raise UnusableConfig(
            f"engine.onnxruntime.output: {name} of {file.path} is {found} wide, and config.json says {width} for task "
            f"{info.task}. Name another output, or set task to what the file is for"
        )
    return name
