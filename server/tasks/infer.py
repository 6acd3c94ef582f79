"""What the graph computes of each input, as it is: of several heads at once, in one pass.

Not of models for late interaction, whose rows depend on which side of a search a text is on.
"""

from dataclasses import dataclass

from server.tasks import classify, embed, fill_mask, question_answering, sparse, token_classify, token_embed
from server.tasks.task import Arrays, Task


@dataclass(frozen=True, slots=True)
class InferParams:
    """Nothing is to be chosen: `Job.outputs` says what is wanted."""


def reduce(arrays: Arrays, params: InferParams) -> Arrays:
    return arrays


HEADS = (
    *(embed.HEAD, classify.HEAD, token_embed.HEAD, token_classify.HEAD, question_answering.HEAD, fill_mask.HEAD),
    *(sparse.HEAD, sparse.TOKEN_HEAD),
)
TASK = Task(
    name="infer",
    heads=tuple(head.name for head in HEADS),
    params=InferParams,
    routes=("POST /v2/models/{name}/infer",),
    reduce=reduce,
)
