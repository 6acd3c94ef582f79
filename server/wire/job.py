"""What crosses from the HTTP side to an engine and back, and the interface between them. Knows no text and no torch.

Times are `time.monotonic()` seconds, which on one machine mean the same in every process.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

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


FinishReason = Literal["", "stop", "length"]

GRAMMAR_FIELDS = {"regex": "regex", "json_schema": "response_format", "json": "response_format"}
"""Where a client puts each kind of `GenerationParams.grammar`."""


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """What is wanted of one prompt. Everything is in tokens; texts (stop strings) are the HTTP side's business."""

    max_tokens: int
    """New tokens; 0 only looks at the prompt."""
    min_tokens: int = 0
    """No end token before this many."""
    num_sequences: int = 1
    """Answers to generate: OpenAI's n, or best_of."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Runs of tokens that must not be generated."""
    stop_token_ids: tuple[int, ...] = ()
    """The model's own end tokens included, unless they are to be ignored. A stop token ends the answer and is its last
    token."""
    seed: int = 0
    """The same seed gives the same answer, whatever else is in the batch."""
    num_logprobs: int = -1
    """-1: none; 0: of the tokens; k: and of the k most probable ones."""
    num_prompt_logprobs: int = -1
    """The same for the prompt's tokens but the first."""
    beam_width: int = 0
    """Over 0: beam search, `num_sequences` (at most beam_width) best answers, all given at the end."""
    length_penalty: float = 1.0
    """Beam search: scores are sums of logprobs divided by length ** length_penalty."""
    early_stopping: bool = False
    """Beam search: end as soon as there are beam_width answers, not only once no better one is likely."""
    grammar: tuple[Literal["", "json_schema", "regex", "json"], str] = ("", "")
    """What the answer must conform to: any JSON, a JSON schema (as JSON text), or a regular expression."""
    priority: int = 0
    """Lower is earlier; of equal ones the nearer deadline."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's logprob, and the most probable tokens in its place."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token, logprob), the most probable first."""


@dataclass(frozen=True, slots=True)
class GenerationEvent:
    """News of one answer of a generation: its next tokens, and at its end why it ended."""

    index: int
    """Which answer, from 0."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token where they were asked for."""
    finish_reason: FinishReason = ""
    num_cached_tokens: int = 0
    """In the very first event: how many of the prompt's tokens were in the prefix cache."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """In the very first event, where asked for: of the prompt's tokens from the second on."""


class GenerationStream(Protocol):
    """A generation under way: iterate over its events until every answer has a finish_reason.

    Iterating raises EngineUnavailable, DeadlineExceeded, EngineFailure, Unservable. Whoever leaves before the end must
    `cancel`.
    """

    def __aiter__(self) -> AsyncIterator[list[GenerationEvent]]: ...

    def stop(self, index: int) -> None:
        """No more of this answer is wanted (a stop string was found): it has no further events, nor a finish_reason."""

    def cancel(self) -> None:
        """Nothing more is wanted. No effect after the end."""


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
    priority: int = 0
    """Lower is earlier, whatever the deadlines."""
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


class Unservable(ValueError):
    """This request could never run here; the text names what to change, `param` the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


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

    def generate(self, prompt: TokenArray, params: GenerationParams, deadline_s: float) -> GenerationStream:
        """Begin to generate after `prompt`. Raises EngineUnavailable and Unservable, at once or from the stream."""

    async def close(self) -> None: ...
