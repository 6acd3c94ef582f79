"""What crosses from the HTTP side to an engine and back: a Job goes, a stream of Results comes. Knows no text.

Everything is ragged, named arrays: the token ids of inputs of any length, one vector for each of them, labels for each
of their tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engine import EngineInfo

Array = npt.NDArray[Any]
Splits = npt.NDArray[np.int32]
TokenArray = npt.NDArray[np.int32]
FrameArray = npt.NDArray[np.float32]

SOURCES = {"source_ids": "input_ids", "features": "features"}
"""What inputs of encoder-decoders bring along beside the beginning of their answers, `input_ids`: token ids, or what
was heard, frame by frame, fp32 `[num_frames, num_features]`. By what their encoders call that."""


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Rows of any length, end to end: row i is `values[row_splits[i]:row_splits[i + 1]]`.

    `row_splits`: int32 `[num_rows + 1]`; None: each row is one entry of `values`.
    """

    values: Array
    row_splits: Splits | None = None

    def __len__(self) -> int:
        return len(self.values) if self.row_splits is None else len(self.row_splits) - 1

    @property
    def lengths(self) -> Splits:
        """int32 `[num_rows]`."""
        return np.ones(len(self.values), np.int32) if self.row_splits is None else np.diff(self.row_splits)

    def row(self, index: int) -> Array:
        if self.row_splits is None:
            return self.values[index : index + 1]
        return self.values[self.row_splits[index] : self.row_splits[index + 1]]

    def cut(self, first: int, last: int) -> "Ragged":
        """Rows `first` to `last`, that one left out. Views, where there are no splits to shift."""
        if self.row_splits is None:
            return Ragged(self.values[first:last])
        splits = self.row_splits[first : last + 1]
        return Ragged(self.values[splits[0] : splits[-1]], splits - splits[0])

    def pick(self, indices: Sequence[int]) -> "Ragged":
        """These rows, in this order."""
        if self.row_splits is None:
            return Ragged(self.values[list(indices)])
        return join_rows([self.row(index) for index in indices])


def join_rows(rows: Sequence[Array]) -> Ragged:
    """Rows end to end. There must be one at least."""
    if len(rows) == 1:  # most jobs
        return Ragged(rows[0], np.array([0, len(rows[0])], np.int32))
    splits = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(np.array([len(row) for row in rows]), out=splits[1:])
    return Ragged(np.concatenate(rows), splits)


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One input after tokenising. `token_type_ids` is None where all are 0."""

    input_ids: TokenArray
    token_type_ids: TokenArray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


def write_inputs(sequences: Sequence[TokenSequence]) -> dict[str, Ragged]:
    """`Job.inputs` of these sequences, in their order."""
    inputs = {"input_ids": join_rows([sequence.input_ids for sequence in sequences])}
    if any(sequence.token_type_ids is not None for sequence in sequences):
        inputs["token_type_ids"] = join_rows([fill_types(sequence) for sequence in sequences])
    return inputs


def fill_types(sequence: TokenSequence) -> TokenArray:
    types = sequence.token_type_ids
    return np.zeros(sequence.num_tokens, np.int32) if types is None else types


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One piece of work: what a client asked for in one call, or the part of it that one engine does.

    `inputs` all have as many rows as there are inputs. `params` are the task's own. `timeout_s` is the time left, which
    means the same to every process, whatever their clocks say.
    """

    task: str
    inputs: dict[str, Ragged]
    timeout_s: float
    params: Any = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    """What the task makes its answer of, and which of the graph's outputs that is. Empty: all, by the graph's names."""
    priority: int = 0
    """Lower is earlier; of equal ones the nearer deadline."""
    salt: str = ""
    """Jobs of different salts share nothing that one could learn of the other from."""
    rows_per_input: int = 1
    """Answers to each input: input i's are rows i * rows_per_input and so on."""
    num_answer_tokens: int = 0
    """That each input's answers are expected to have; how loads are compared."""

    @property
    def input_ids(self) -> Ragged:
        """int32."""
        return self.inputs["input_ids"]

    @property
    def num_inputs(self) -> int:
        return len(self.input_ids)

    @property
    def num_tokens(self) -> int:
        """Of all inputs, and of what they are answers to."""
        return sum(len(self.inputs[name].values) for name in ("input_ids", *SOURCES) if name in self.inputs)

    @property
    def load_tokens(self) -> int:
        """Tokens that an engine will have computed when the job is done."""
        return self.num_tokens + self.num_inputs * self.num_answer_tokens

    def cut(self, first: int, last: int) -> "Job":
        """The part of it that is about inputs `first` to `last`, that one left out."""
        if (first, last) == (0, self.num_inputs):
            return self
        return replace(self, inputs={name: array.cut(first, last) for name, array in self.inputs.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """News of some rows of a job: of inputs, or of the answers to them.

    `rows`: int32 `[n]`, which ones; row i of every array is `rows[i]`'s. `is_last`: nothing more comes of this job.
    `queue_s`, `engine_s`: the longest that any of these inputs waited, and was computed.
    """

    rows: npt.NDArray[np.int32]
    arrays: dict[str, Ragged]
    is_last: bool
    queue_s: float = 0.0
    engine_s: float = 0.0
    is_restart: bool = False
    """What came of these rows before counts no more: they are computed anew. There are no arrays."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine last said of itself. `is_ready`: connected, warmed up, and computing."""

    is_ready: bool
    reason: str
    tokens_per_s: float = 0.0
    """Measured rate: of full batches, or of answers' tokens where those are what takes time; 0: not known yet."""
    info: EngineInfo | None = None
