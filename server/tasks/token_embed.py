"""Token embeddings: a vector for each token of each input, special tokens among them."""

from dataclasses import dataclass

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.tasks.head import Example, Head, Work
from server.tasks.task import Arrays, Task


@dataclass(frozen=True, slots=True)
class TokenEmbedParams:
    """Nothing is to be chosen."""


def reduce(arrays: Arrays, params: TokenEmbedParams) -> Arrays:
    return arrays


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
    heads=("token_embed",),
    params=TokenEmbedParams,
    routes=("POST /embed_all",),
    reduce=reduce,
)
