"""Token embeddings: a vector for each token of each input, special tokens among them."""

from dataclasses import dataclass

import numpy as np

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.tasks.head import Example, Head, Work
from server.tasks.task import Arrays, Task
from server.wire.job import Ragged


@dataclass(frozen=True, slots=True)
class TokenEmbedParams:
    """`skipped_ids`: tokens that give no vectors."""

    skipped_ids: tuple[int, ...] = ()


def reduce(arrays: Arrays, params: TokenEmbedParams) -> Arrays:
    """What is skipped does not cross the wire."""
    rows = arrays["token_embeddings"]
    return {
        "token_embeddings": skip_rows(rows, arrays["input_ids"], params.skipped_ids) if params.skipped_ids else rows
    }


def read_skipped(params: TokenEmbedParams) -> tuple[str, ...]:
    """Without tokens to skip nobody asks which ones there are."""
    return ("input_ids",) if params.skipped_ids else ()


def skip_rows(rows: Ragged, input_ids: Ragged, skipped_ids: tuple[int, ...]) -> Ragged:
    """Without those of these tokens; an input may have none left."""
    is_kept = ~np.isin(input_ids.values, skipped_ids)
    num_before = np.concatenate([[0], np.cumsum(is_kept)])
    return Ragged(rows.values[is_kept], num_before[rows.row_splits].astype(np.int32))


def check_config(model: ModelConfig) -> None:
    """All there is fits: what it says of pooling is for the head beside this one."""


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("token_embeddings", "float32", ("num_tokens", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} numbers for each token out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example("/embed_all", {"inputs": "Hello, world" if has_tokenizer else [[1, 2, 3]]})


HEAD = Head("token_embed", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="token_embed",
    heads=("token_embed", "multi_vector"),
    params=TokenEmbedParams,
    routes=("POST /embed_all", "POST /pooling"),
    reduce=reduce,
    reads=read_skipped,
)
