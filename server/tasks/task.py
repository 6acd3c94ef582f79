"""What a task says of itself; `registry` lists those there are.

A task is one file: what is wanted of the engine, what becomes of what it computes, and which routes serve it. A file of
`http/api` knows how a protocol writes the question and the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.wire.job import Ragged

Arrays = dict[str, Ragged]


class Work(Enum):
    """What an engine has to do; one batcher owns each."""

    ENCODE = "encode"
    """Every input goes through the model once."""
    DECODE = "decode"
    """An input is gone on from, token by token."""


class Example(NamedTuple):
    """A request that works, for people who have just started the server."""

    route: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """`params`: the type of `Job.params`. `routes`: for people who ask at the wrong one.

    `reduce(arrays, params)`: beside the engine, makes of what the graph has computed what crosses the wire.
    `check_config` raises ConfigError where the configuration asks for what this task has not.
    """

    name: str
    work: Work
    params: type
    routes: tuple[str, ...]
    reduce: Callable[[Arrays, Any], Arrays]
    check_config: Callable[[ModelConfig], None]
    describe_graph: Callable[[ModelInfo], tuple[ArraySpec, ...]]
    """What a graph for it computes; for engines that have none."""
    describe_output: Callable[[ModelInfo], str]
    make_example: Callable[[str, bool, bool], Example]
    """(model's name, it has a tokenizer, it has a chat template)."""
