"""Masked language modelling: the words most probable at each masked place of a text, as transformers'
FillMaskPipeline has it. A place's probabilities are its own, also where there are several in a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import ModelConfig
from server.errors import InvalidField
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Arrays, Task
from server.wire.job import Ragged, TokenArray, TokenSequence

MAX_MASKS = 64
"""In one text: each is a row of numbers for all words of the vocabulary, as much to compute as many tokens."""
BLOCK_WORDS = 512
"""Whose largest is looked for first, where there are many words."""


@dataclass(frozen=True, slots=True)
class FillMaskParams:
    """`top_k` words are wanted of each place; of `target_ids`, where only these count."""

    top_k: int = 5
    target_ids: tuple[int, ...] | None = None


def reduce(arrays: Arrays, params: FillMaskParams) -> Arrays:
    """`token_ids` int32 and `scores` fp32, `[num_masks, k]` of each input, the most probable first; of equal ones the
    lower id, or the earlier target.

    A score is the probability among all words of the vocabulary, also where only targets count. NaN is kept, so that it
    is found.
    """
    logits = arrays["masked_logits"]
    exps = np.empty(logits.values.shape[1], np.float32)  # memory that is new for each row takes most of its time
    found = [rank_words(row, params, exps) for row in logits.values]
    num_words = logits.values.shape[1] if params.target_ids is None else len(params.target_ids)
    shape = (-1, min(params.top_k, num_words))
    ids = np.array([ids for ids, _ in found], np.int32).reshape(shape)
    scores = np.array([scores for _, scores in found], np.float32).reshape(shape)
    return {"token_ids": Ragged(ids, logits.row_splits), "scores": Ragged(scores, logits.row_splits)}


def rank_words(
    logits: npt.NDArray[np.float32], params: FillMaskParams, exps: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Ids and probabilities of one place, from `[vocab_size]`. `exps`: room for as many numbers."""
    candidates = logits if params.target_ids is None else logits[list(params.target_ids)]
    best = pick_largest(candidates, params.top_k)
    largest = logits[best[0]] if params.target_ids is None else logits.max()
    np.exp(np.subtract(logits, largest, out=exps), out=exps)
    scores = np.exp(candidates[best] - largest) / exps.sum()
    return best if params.target_ids is None else np.array(params.target_ids)[best], scores


def pick_largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Places of the `count` largest, in order; the first of equal ones. Only those are sorted."""
    count = min(count, len(values))
    places = find_candidates(values, count)
    found = values[places]
    least = np.partition(found, len(found) - count)[len(found) - count]
    places = places[~(found < least)]
    order: npt.NDArray[np.intp] = places[np.argsort(-values[places], kind="stable")][:count]
    return order


def find_candidates(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Places, in order, among which the `count` largest are: of all that are not below so many blocks' largest ones."""
    num_blocks = len(values) // BLOCK_WORDS
    if num_blocks < count:
        return np.arange(len(values))
    num_words = num_blocks * BLOCK_WORDS
    blocks = values[:num_words].reshape(num_blocks, BLOCK_WORDS)
    largest = blocks.max(axis=1)
    least = np.partition(largest, num_blocks - count)[num_blocks - count]
    chosen = np.flatnonzero(~(largest < least))
    owners, places = np.nonzero(~(blocks[chosen] < least))
    rest = np.flatnonzero(~(values[num_words:] < least))
    return np.concatenate([chosen[owners] * BLOCK_WORDS + places, num_words + rest])


def find_masks(sequence: TokenSequence, info: ModelInfo) -> TokenArray:
    """The masked places of an input, in order."""
    return np.flatnonzero(sequence.input_ids == info.mask_token_id).astype(np.int32)


def check_masks(masks: Sequence[TokenArray], info: ModelInfo, max_masks: int, field: str) -> None:
    """`masks`: the masked places of each input. Raises InvalidField where there is none, or more than `max_masks`."""
    for index, places in enumerate(masks):
        name = f"{field}[{index}]" if len(masks) > 1 else field
        if not len(places):
            raise InvalidField(f"{name} has no {info.mask_token}: put one where a word is to be filled in", param=field)
        if len(places) > max_masks:
            raise InvalidField(f"{name} has {len(places)} {info.mask_token}; the limit is {max_masks}", param=field)


def fill_in(sequence: TokenSequence, place: int, token_ids: Sequence[int]) -> list[list[int]]:
    """The tokens of an input with each of these in a masked place; other places stay masked."""
    before, after = sequence.input_ids[:place].tolist(), sequence.input_ids[place + 1 :].tolist()
    return [[*before, token_id, *after] for token_id in token_ids]


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this one fills in words")


def describe_graph(info: ModelInfo) -> tuple[ArraySpec, ...]:
    return (ArraySpec("masked_logits", "float32", ("num_logits", info.output_dim)),)


def describe_output(info: ModelInfo) -> str:
    return f"{info.output_dim} words for each masked place out"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example(f"/models/{name}", {"inputs": f"Paris is the {info.mask_token} of France."})


HEAD = Head("fill_mask", Work.ENCODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="fill_mask", heads=("fill_mask",), params=FillMaskParams, routes=("POST /models/{name}",), reduce=reduce
)
