"""What crosses from the HTTP side to an engine and back, and the interface between them. Knows no text and no torch.

Times are `time.monotonic()` seconds, which on one machine mean the same in every process.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.engine import EngineInfo

TokenArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One input after tokenising. `token_type_ids` is None where all are 0."""

    input_ids: TokenArray
    token_type_ids: TokenArray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


@dataclass(slots=True)
class Request:
    """One sequence in the queue of an engine. `call_id` names the client call it is part of.

    Mutable: `is_cancelled`, set when nobody waits for the answer any more; its place in the queue, set by the queue.
    """

    request_id: int
    call_id: int
    sequence: TokenSequence
    deadline_s: float
    arrival_s: float
    virtual_deadline_s: float = 0.0
    queue_number: int = 0
    is_queued: bool = False
    is_cancelled: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.sequence.input_ids)


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows in the order of the sequences: float32 `[num_seqs, output_dim]`; and the slowest sequence's times."""

    values: npt.NDArray[np.float32]
    queue_s: float = 0.0
    engine_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine last said of itself. `is_ready`: connected, warmed up, and a recent forward pass succeeded."""

    is_ready: bool
    reason: str
    queued_tokens: int = 0
    tokens_per_s: float = 0.0
    """Measured rate of full batches; 0 before the first step."""
    num_restarts: int = 0
    info: EngineInfo | None = None


class EngineUnavailable(RuntimeError):
    """The engine is starting, has died, or is draining: the client may try again."""


class DeadlineExceeded(RuntimeError):
    """The deadline passed before the answer was there."""


class EngineFailure(RuntimeError):
    """The step that held this call failed."""


class EngineClient(Protocol):
    """The HTTP side's view of one model's engines."""

    def status(self) -> tuple[EngineStatus, ...]:
        """One entry per replica."""

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        """Compute one client call; it may be split over steps and replicas, and comes back whole.

        Cancelling the task frees its place in the queue. Raises EngineUnavailable, DeadlineExceeded, EngineFailure.
        """

    async def close(self) -> None: ...
