"""A call's way through the server: admit, tokenise, run. Knows no protocol: inputs come parsed, rows go out."""

from dataclasses import dataclass, field
from time import monotonic

from server.errors import EmptyInput, InvalidField
from server.http.state import ServedModel
from server.metrics import UNKNOWN_MODEL, CallTimes
from server.tasks.scores import check_finite
from server.text.tokenizer import Input, Truncation, count_chars
from server.wire.job import Answer, DeadlineExceeded, EngineStatus, EngineUnavailable


@dataclass(slots=True)
class HttpCall:
    """One HTTP call on its way. Mutable: what is learned of it while it runs, for the metrics.

    `model` is a configured name or UNKNOWN_MODEL. Times are `time.monotonic()` seconds.
    """

    route: str
    start_s: float
    deadline_s: float
    model: str = UNKNOWN_MODEL
    times: CallTimes = field(default_factory=CallTimes)


async def run_inputs(
    call: HttpCall, model: ServedModel, inputs: list[Input], *, field: str, truncation: Truncation
) -> Answer:
    """Compute one row per input. `field` is the request's field the inputs came in, for error messages.

    Raises ApiError's kinds, EngineUnavailable, DeadlineExceeded, EngineFailure. Cancelling frees everything.
    """
    check_count(inputs, model, field)
    tokens_per_s = check_engine(model)
    num_chars = count_chars(inputs)
    with model.admission.admit(
        len(inputs),
        estimate_tokens(inputs, num_chars, model),
        deadline_s=call.deadline_s,
        tokens_per_s=tokens_per_s,
    ) as ticket:
        begin_s = monotonic()
        sequences = await model.tokenizer.encode(inputs, truncation=truncation, field=field)
        call.times.num_inputs = len(sequences)
        call.times.num_tokens = num_tokens = sum(sequence.num_tokens for sequence in sequences)
        ticket.correct(num_tokens)
        now_s = monotonic()
        call.times.tokenize_s = now_s - begin_s
        if num_chars:
            model.admission.estimator.learn(num_chars, num_tokens)
        if now_s >= call.deadline_s:
            raise DeadlineExceeded("the deadline passed while the text was tokenised")
        answer = await model.engine.run(sequences, call.deadline_s)
    if len(answer.values) != len(sequences):
        raise RuntimeError(f"{len(sequences)} sequences got {len(answer.values)} rows. This is a bug.")
    call.times.queue_s, call.times.engine_s = answer.queue_s, answer.engine_s
    check_finite(answer.values)
    return answer


def check_count(inputs: list[Input], model: ServedModel, field: str) -> None:
    """Raises EmptyInput, InvalidField."""
    if not inputs:
        raise EmptyInput(f"{field} must not be empty", param=field)
    limit = model.config.limits.max_client_batch_size
    if len(inputs) > limit:
        raise InvalidField(
            f"{field} has {len(inputs)} items; the limit is {limit} per request, send several", param=field
        )


def check_engine(model: ServedModel) -> float:
    """The replicas' measured tokens per second, 0 before the first step. Raises EngineUnavailable if none is ready."""
    statuses = model.engine.status()
    ready = [status for status in statuses if status.is_ready]
    if not ready:
        raise EngineUnavailable(f"model {model.name!r} is not ready: {describe_statuses(statuses)}")
    return sum(status.tokens_per_s for status in ready)


def describe_statuses(statuses: tuple[EngineStatus, ...]) -> str:
    """Why the replicas that are not ready are not."""
    reasons = [f"replica {i}: {status.reason}" for i, status in enumerate(statuses) if not status.is_ready]
    return "; ".join(reasons) or "it has no replica"


def estimate_tokens(inputs: list[Input], num_chars: int, model: ServedModel) -> int:
    """Exact for token ids, guessed from the characters for text."""
    if isinstance(inputs[0], list):
        return sum(len(item) for item in inputs if isinstance(item, list))
    return model.admission.estimator.estimate(
        num_chars, num_texts=len(inputs), max_input_tokens=model.tokenizer.max_input_tokens
    )
