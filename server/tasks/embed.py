"""Embeddings: one vector for each input."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.errors import InvalidField
from server.tasks.head import Example, Head, Work
from server.tasks.task import Arrays, Task
from server.wire.job import Ragged

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """`dimensions`: so many of the leading ones are wanted; None: all, as they are."""

    dimensions: int | None = None


def reduce(arrays: Arrays, params: EmbedParams) -> Arrays:
    """What is not wanted does not cross the wire."""
    return {"embeddings": Ragged(shorten(arrays["embeddings"].values, params.dimensions))}


def shorten(rows: Rows, dimensions: int | None) -> Rows:
    """The first `dimensions` columns, scaled to length 1 again (Kusupati et al., 2022: Matryoshka representations)."""
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    kept = rows[:, :dimensions]
    norms = np.sqrt(np.einsum("ij,ij->i", kept, kept, dtype=np.float64))
    return np.ascontiguousarray(kept / np.maximum(norms, 1e-12)[:, None], dtype=np.float32)


def check_dimensions(dimensions: int | None, info: ModelInfo) -> None:
    """Raises InvalidField where the client wants more dimensions than the model has."""
    if dimensions is not None and dimensions > info.output_dim:
        raise InvalidField(
            f"dimensions is {dimensions}; this model's vectors have {info.output_dim}", param="dimensions"
        )


def check_config(model: ModelConfig) -> None:
    """All there is fits."""


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("embeddings", "float32", ("num_seqs", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} numbers out"


def make_example(name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    text = "Hello, world" if has_tokenizer else [1, 2, 3]
    return Example("/v1/embeddings", {"model": name, "input": text, "encoding_format": "float"})


HEAD = Head("embed", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="embed",
    heads=("embed",),
    params=EmbedParams,
    routes=("POST /v1/embeddings",),
    reduce=reduce,
)
