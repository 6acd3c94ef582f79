"""What a task says of itself; `registry` lists those there are.

A task is one file: what is wanted of the engine, what becomes of what it computes, and which routes serve it. A file of
`http/api` knows how a protocol writes the question and the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from models.info import ModelInfo
from server.wire.job import Job, Ragged

Arrays = dict[str, Ragged]


def suits_all(info: ModelInfo) -> bool:
    return True


def reads_nothing(params: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Task:
    """`heads`: what models are made for that can do it, if they suit it: a ranker has one label only.

    `params`: the type of `Job.params`. `routes`: for people who ask at the wrong one. `reduce(arrays, params)`: beside
    the engine, makes of what the graph has computed what crosses the wire. `reads(params)`: of the job's own inputs
    what that needs, which then is among the arrays.
    """

    name: str
    heads: tuple[str, ...]
    params: type
    routes: tuple[str, ...]
    reduce: Callable[[Arrays, Any], Arrays]
    suits: Callable[[ModelInfo], bool] = suits_all
    reads: Callable[[Any], tuple[str, ...]] = reads_nothing

    def reduce_rows(self, arrays: Arrays, job: Job, rows: Sequence[int]) -> Arrays:
        """`arrays` are what was computed of these inputs of the job."""
        own = {name: job.inputs[name].pick(rows) for name in self.reads(job.params)}
        return self.reduce(arrays | own, job.params)

    def can_use(self, info: ModelInfo) -> bool:
        return info.task in self.heads and self.suits(info)
