"""What models give in the Open Inference Protocol: a row for each input, or rows for its tokens or its masked places.
Tensors have one shape, so there are zeros where an input has fewer of them than another one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.errors import InvalidField
from server.http.state import ServedModel
from server.tasks import fill_mask, infer
from server.tasks.registry import list_outputs
from server.wire.job import Ragged, TokenArray, TokenSequence

Rows = npt.NDArray[np.float32]
"""`[n, width]`, or `[n, longest, width]`."""
Kept = npt.NDArray[np.bool_]
"""`[n, longest]`: which places of a tensor of ids are tokens, and not padding."""
MAX_NUMBERS = 1 << 24
"""Of one answer: 67 MB, and as JSON three times as much."""


def find_outputs(model: ServedModel) -> dict[str, ArraySpec]:
    """Of the model and its further heads that were configured, by name. Raises WrongTask where there are none."""
    model.pick_head(infer.TASK)
    heads = [head for head in model.heads if head is model or head.is_listed]
    infos = [head.info for head in heads if infer.TASK.can_use(head.info)]
    return {spec.name: spec for spec in list_outputs(infos)}


def describe_dims(spec: ArraySpec) -> list[int]:
    """Behind the first, which counts inputs."""
    width = int(spec.dims[-1])
    return [width] if has_one_row(spec) else [-1, width]


def has_one_row(spec: ArraySpec) -> bool:
    """For each input."""
    return spec.dims[0] == "num_seqs"


def pick_outputs(names: Sequence[str], outputs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Those that are named; else those with one row for each input, and where there are none of these, all.

    Raises InvalidField.
    """
    for name in names:
        if name not in outputs:
            raise InvalidField(f"outputs: there is no {name!r}; there are {', '.join(outputs)}", param="outputs")
    usual = [name for name, spec in outputs.items() if has_one_row(spec)] or list(outputs)
    return {name: outputs[name] for name in names or usual}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The outputs of one call. `kept`: None where the inputs are texts."""

    model: ServedModel
    outputs: Mapping[str, ArraySpec]
    kept: Kept | None

    @property
    def filler(self) -> ModelInfo | None:
        """Of the head for masked places, where these are wanted."""
        is_wanted = any(spec.dims[0] == "num_logits" for spec in self.outputs.values())
        return self.model.pick_head(fill_mask.TASK).info if is_wanted else None

    @property
    def list_rows(self) -> Callable[[TokenSequence], TokenArray] | None:
        """See `TextJob.list_rows`."""
        return None if self.filler is None else partial(fill_mask.find_masks, info=self.filler)

    async def settle(self, sequences: Sequence[TokenSequence]) -> infer.InferParams:
        """Refuses answers that are too large before they are computed. Raises InvalidField."""
        longest = max(each.num_tokens for each in sequences) if self.kept is None else self.kept.shape[1]
        counts = {"num_seqs": 1, "num_tokens": longest, "num_logits": self.count_masks(sequences)}
        width = sum(counts[str(spec.dims[0])] * int(spec.dims[-1]) for spec in self.outputs.values())
        if len(sequences) * width > MAX_NUMBERS:
            raise InvalidField(
                f"inputs would get {len(sequences) * width:,} numbers; the limit is {MAX_NUMBERS:,} per request: send "
                "several",
                param="inputs",
            )
        return infer.InferParams()

    def count_masks(self, sequences: Sequence[TokenSequence]) -> int:
        """The most that an input has. Raises InvalidField where one has none, or too many."""
        info = self.filler
        if info is None or info.mask_token_id is None:
            return 0
        max_masks = min(fill_mask.MAX_MASKS, self.model.config.limits.max_batch_requests)
        masks = [fill_mask.find_masks(each, info) for each in sequences]
        fill_mask.check_masks(masks, info, max_masks, "inputs")
        return max(map(len, masks))

    def fill(self, found: Mapping[str, Ragged]) -> dict[str, Rows]:
        """Tensors of what was computed, by the outputs' names."""
        return {
            name: found[name].values
            if has_one_row(spec)
            else fill_rows(found[name], self.find_places(spec, found[name]))
            for name, spec in self.outputs.items()
        }

    def find_places(self, spec: ArraySpec, rows: Ragged) -> Kept:
        """Of the rows of each input: where its tokens are in the tensor of ids, else from the first on."""
        lengths = rows.lengths[:, None]
        if self.kept is None or spec.dims[0] != "num_tokens":
            found: Kept = np.arange(lengths.max()) < lengths
            return found
        order = np.cumsum(self.kept, axis=1)  # of what is cut, one end is not there
        first = order[:, -1:] - lengths if self.model.config.limits.truncation == "left" else 0
        return self.kept & (order > first) & (order <= first + lengths)


def fill_rows(rows: Ragged, places: Kept) -> Rows:
    filled = np.zeros((*places.shape, rows.values.shape[-1]), np.float32)
    filled[places] = rows.values
    return filled
