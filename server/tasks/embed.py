"""Embeddings: one vector for each input."""

from dataclasses import dataclass

import numpy as np

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.errors import InvalidField
from server.tasks.head import Example, Head, Work
from server.tasks.task import Arrays, Task
from server.tasks.vector_types import WRITERS, OutputType, Rows, measure_rows, scale_rows
from server.wire.job import Ragged


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """`dimensions`: so many of the leading ones are wanted; None: all. `rescale`: to length 1, after that. `types`:
    what the numbers are written as."""

    dimensions: int | None = None
    rescale: bool = False
    types: tuple[OutputType, ...] = ("float",)


def build_params(
    info: ModelInfo,
    *,
    dimensions: int | None = None,
    normalize: bool | None = None,
    types: tuple[OutputType, ...] = ("float",),
    dimensions_field: str = "dimensions",
    normalize_field: str = "normalize",
) -> EmbedParams:
    """`normalize`: whether vectors have length 1; None: as the model has it. `..._field`: what the request calls them.

    The cut undoes a model's scaling, and so it is done again; vectors that never had length 1 are only cut, as
    sentence-transformers' `truncate_dim` does. Raises InvalidField.
    """
    check_dimensions(dimensions, info, dimensions_field)
    check_scaling(normalize, info, normalize_field)
    is_cut = dimensions is not None and dimensions < info.output_dim
    return EmbedParams(dimensions, is_cut if info.normalize else bool(normalize), types)


def reduce(arrays: Arrays, params: EmbedParams) -> Arrays:
    """What is not wanted does not cross the wire. An array for each type, by the name that `name_array` gives it.

    `norms`, fp32 `[num_seqs]`, stands beside types that cannot say that a vector holds no numbers, or that
    one is too large for half precision.
    """
    rows: Rows = shorten(arrays["embeddings"].values, params.dimensions)
    rows = scale_rows(rows) if params.rescale else rows
    written = {name_array(kind): Ragged(WRITERS[kind](rows)) for kind in params.types}
    if "float" not in params.types:
        written["norms"] = Ragged(measure_rows(rows))
    return written


def name_array(kind: OutputType) -> str:
    """Of a type's rows among what `reduce` gives."""
    return "embeddings" if kind == "float" else kind


def shorten(rows: Rows, dimensions: int | None) -> Rows:
    """The first `dimensions` columns (Kusupati et al., 2022: Matryoshka representations)."""
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    return np.ascontiguousarray(rows[:, :dimensions])


def check_dimensions(dimensions: int | None, info: ModelInfo, field: str = "dimensions") -> None:
    """Raises InvalidField where the model has not so many, or was not trained to have so few."""
    if dimensions is None or dimensions == info.output_dim:
        return
    if dimensions > info.output_dim:
        raise InvalidField(f"{field} is {dimensions}; this model's vectors have {info.output_dim}", param=field)
    trained = [each for each in info.matryoshka_dimensions if each < info.output_dim]
    if trained and dimensions not in trained:
        listed = ", ".join(map(str, sorted({*trained, info.output_dim})))
        raise InvalidField(f"{field} is {dimensions}; this model was trained for {listed}", param=field)


def check_scaling(normalize: bool | None, info: ModelInfo, field: str) -> None:
    """Raises InvalidField where vectors are wanted as they were before the model scaled them."""
    if normalize is False and info.normalize:
        raise InvalidField(
            f"{field} cannot be false: this model scales its vectors to length 1 itself, which cannot be undone. "
            "Leave it out, or have the model served with normalize: false",
            param=field,
        )


def check_config(model: ModelConfig) -> None:
    """All there is fits."""


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("embeddings", "float32", ("num_seqs", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} numbers out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    text = "Hello, world" if has_tokenizer else [1, 2, 3]
    return Example("/v1/embeddings", {"model": name, "input": text, "encoding_format": "float"})


HEAD = Head("embed", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="embed",
    heads=("embed",),
    params=EmbedParams,
    routes=("POST /v1/embeddings", "POST /embed", "POST /v1/embed", "POST /v2/embed"),
    reduce=reduce,
)
