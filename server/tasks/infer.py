"""What the graph computes of each input, as it is: of several heads at once, in one pass."""

from dataclasses import dataclass

from server.tasks import classify, embed
from server.tasks.task import Arrays, Task


@dataclass(frozen=True, slots=True)
class InferParams:
    """Nothing is to be chosen: `Job.outputs` says what is wanted."""


def reduce(arrays: Arrays, params: InferParams) -> Arrays:
    return arrays


TASK = Task(
    name="infer",
    heads=(embed.HEAD.name, classify.HEAD.name),
    params=InferParams,
    routes=("POST /v2/models/{name}/infer",),
    reduce=reduce,
)
