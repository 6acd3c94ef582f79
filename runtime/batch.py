"""THE CONTRACT between serving and runtime: a packed batch goes in, one row of numbers per sequence comes out.

Both are plain numpy in a dataclass, so the border can be a process boundary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences laid end to end, with no padding between or after them.

    `input_ids`, `position_ids`, `token_type_ids`: int64 `[num_tokens]`; positions restart at 0 in each sequence.
    `cu_seqlens`: int32 `[num_seqs + 1]`, starts at 0, strictly increasing, ends at `num_tokens`.
    `max_seqlen`: length of the longest sequence.
    """

    input_ids: IntArray
    position_ids: IntArray
    token_type_ids: IntArray
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def seqlens(self) -> npt.NDArray[np.int32]:
        return np.diff(self.cu_seqlens)


@dataclass(frozen=True, slots=True)
class Output:
    """What one step computed. `values`: float32 `[num_seqs, output_dim]`, in the order of the batch."""

    values: npt.NDArray[np.float32]
