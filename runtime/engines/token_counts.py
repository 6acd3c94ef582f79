"""How often each token stands before a row, counted where logits are: what penalties need, without a history that is
sent anew in every step."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from runtime.batch import Counted, Sampling
from runtime.engines.transfer import Staging

MAX_COUNTERS = 256
"""More sequences that have penalties at one time are told by their history. One takes half of what a row of logits
does."""
Penalise = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""Changes logits fp32 [num_logits, vocab_size] in place, in the rows int64 [n], by counts [num_counters, vocab_size] as
`TokenCounts` keeps them, of the counters int64 [n], and by `how`, fp32 [3, n]: each row's repetition, presence and
frequency penalty."""


class TokenCounts:
    """Of at most `num_counters` sequences of at most `max_tokens`.

    Mutable: `counts` [num_counters, vocab_size], which are there once somebody has asked for penalties: of a token
    twice the times that it was generated, and 1 if it is in the prompt.
    """

    def __init__(self, num_counters: int, vocab_size: int, max_tokens: int, device: torch.device, penalise: Penalise):
        self.shape = num_counters, vocab_size
        self.dtype = torch.int16 if 2 * max_tokens < torch.iinfo(torch.int16).max else torch.int32
        self.run = penalise
        self.staging = Staging(device)
        self.counts: Tensor | None = None

    @property
    def num_counters(self) -> int:
        return self.shape[0]

    @property
    def planned_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def penalise(self, logits: Tensor, counted: Counted, sampling: Sampling) -> None:
        """Count what is new, then change the rows, in place. All that they need is sent at once, and nothing is waited
        for. Raises RuntimeError where there is no memory."""
        rows = counted.rows
        penalties = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
        there = self.staging.send(
            {
                "how": np.stack([penalty[rows] for penalty in penalties]).astype(np.float32),
                "rows": rows,
                "counters": counted.counters,
                "cleared": counted.cleared,
                "added_counters": counted.added_counters,
                "added_ids": counted.added_ids,
                "added": np.where(counted.is_generated, 2, 1).astype(np.int32),
            }
        )
        if self.counts is None:
            self.counts = torch.zeros(self.shape, dtype=self.dtype, device=logits.device)
        self.counts.index_fill_(0, there["cleared"], 0)
        added = there["added"].to(self.dtype)
        self.counts.index_put_((there["added_counters"], there["added_ids"]), added, accumulate=True)
        self.run(logits, there["rows"], self.counts, there["counters"], there["how"])
