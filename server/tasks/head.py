"""What a model is made for, which `ModelInfo.task` names: what its graph gives, and what may be configured.

Which tasks it can do is theirs to say: a classifier also ranks, an embedder also tells how alike two texts are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ConfigError, ModelConfig


class Work(Enum):
    """What an engine has to do; one batcher owns each."""

    ENCODE = "encode"
    """Every input goes through the model once."""
    DECODE = "decode"
    """An input is gone on from, token by token."""
    ENCODE_DECODE = "encode_decode"
    """An input is encoded, and an answer to it decoded token by token."""

    @property
    def decodes(self) -> bool:
        return self is not Work.ENCODE


class Example(NamedTuple):
    """A request that works, for people who have just started the server."""

    route: str
    body: dict[str, Any]
    is_form: bool = False
    """Not JSON: files are named as curl wants it, behind @."""


@dataclass(frozen=True, slots=True)
class Head:
    """`check_config` raises ConfigError where the configuration asks for what such models have not."""

    name: str
    work: Work
    check_config: Callable[[ModelConfig], None]
    describe_graph: Callable[[ModelInfo], tuple[ArraySpec, ...]]
    """What a graph for it computes; for engines that have none."""
    describe_output: Callable[[ModelInfo], str]
    make_example: Callable[[ModelInfo, str, bool, bool], Example]
    """(model, its name, it has a tokenizer, it has a chat template)."""


def refuse_pooling(model: ModelConfig, reason: str) -> None:
    """For heads that make no vector of a text. `reason`: what the keys are for. Raises ConfigError."""
    if model.pooling != "auto" or model.normalize is not None:
        raise ConfigError(f"model {model.name}: pooling and normalize are for {reason}. Leave them out")
