"""A job's way through the HTTP side: take a place, turn text into tokens, submit, and hand on what comes. Knows no
protocol and no task."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np

from server.errors import DeadlineExceeded, EmptyInput, EngineUnavailable, InvalidAnswer, InvalidField, Overloaded
from server.http.admission import Ticket
from server.http.call import Call
from server.http.keys import Charge
from server.http.state import ServedModel
from server.tasks.task import Task
from server.text.inputs import Input, Size, measure
from server.text.late_interaction import Filling, fill_up
from server.text.located import Window
from server.text.prompts import NO_PROMPT, Prompt, count_prompt_tokens, put_before
from server.text.work import Truncation
from server.wire.job import (
    EngineStatus,
    FrameArray,
    Job,
    Ragged,
    Result,
    TokenArray,
    TokenSequence,
    join_rows,
    write_inputs,
)
from server.wire.result_stream import ResultStream

Settle = Callable[[Sequence[TokenSequence]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class TextJob:
    """A Job before its texts are tokenised: what a protocol file makes of a body.

    `task`: what is to be done. `field`: the request's field the inputs came in, for error messages. `settle` makes the
    Job's params where they depend on how long the inputs are. `num_answers` to each input take a place each, of up to
    `num_answer_tokens`.
    """

    task: Task
    inputs: Sequence[Input]
    field: str
    params: Any = None
    outputs: Mapping[str, str] | None = None
    """See `Job.outputs`; None: those of the model's head."""
    settle: Settle | None = None
    prompt: Prompt = NO_PROMPT
    """Its text stands before each text; its adapter is for ids as well."""
    around: tuple[TokenArray, TokenArray] | None = None
    """Stand before and behind each text's tokens and are never cut off. With them texts get no special tokens."""
    truncation: Truncation = "error"
    cuts_first: bool = False
    """Of pairs truncation cuts the first text only."""
    stride: int | None = None
    """Where places are wanted: longer texts become several windows, which share so many tokens."""
    list_rows: Callable[[TokenSequence], TokenArray] | None = None
    """The tokens of an input, in order, whose logits over words are wanted; None: nobody says."""
    wants_places: bool = False
    """All inputs are texts or pairs, and `OpenJob.windows` is to say where in them their tokens are."""
    add_special_tokens: bool = True
    max_input_tokens: int | None = None
    """Of each input, where the call wants fewer than the model takes."""
    openings: Sequence[TokenArray] = ()
    """How the answer to each input begins, of encoder-decoders, for which inputs are sources."""
    features: Sequence[FrameArray] = ()
    """What was heard, of those that go on from it: rows of frames for each input."""
    filling: Filling | None = None
    """What shorter inputs are filled up with once they are tokens."""
    num_answers: int = 1
    num_sequences: int = 1
    """Of each input at one time."""
    num_answer_tokens: int = 0
    priority: int = 0
    has_place: bool = False
    """The call holds one already, for all of its jobs, so that a later one is not refused."""


class OpenJob:
    """An async context manager: inside, the job has its place and its results come; leaving frees both.

    Raises ServiceError's kinds on entering. Mutable: what is known of the job.
    """

    def __init__(self, call: Call, model: ServedModel, job: TextJob) -> None:
        self.call, self.model, self.job = call, model, job
        self.inputs = job.inputs
        self.size = Size(0)
        self.num_prompt_tokens = 0
        """That pooling leaves out of each text."""
        self.num_tokens = 0
        self.num_expected = 0
        """Tokens of the answers to one input."""
        self.sequences: list[TokenSequence] = []
        self.num_keys: list[int] = []
        """Tokens of each input that are attended to; empty where all are."""
        self.windows: list[list[Window]] = []
        """Of each input, where the job asks for places: the sequences in the same order."""
        self.params = job.params
        self.ticket: Ticket | None = None
        self.charge: Charge | None = None
        self.results: ResultStream | None = None

    async def __aenter__(self) -> "OpenJob":
        self.call.key.check_priority(self.job.priority)
        check_count(self.job, self.model)
        tokens_per_s = check_engine(self.model)
        self.inputs = put_before(self.job.prompt.text, self.job.inputs)
        self.size = measure(self.inputs)
        self.check_cut()
        self.num_expected = self.estimate_answers()
        num_tokens = self.estimate_inputs() + self.num_expected * len(self.job.inputs)
        self.charge = self.call.key.charge(num_tokens, has_begun=self.call.is_charged)
        self.call.is_charged = True
        try:
            if not self.job.has_place:
                self.ticket = self.model.admission.admit(
                    len(self.job.inputs) * self.job.num_answers,
                    num_tokens,
                    deadline_s=self.call.deadline_s,
                    tokens_per_s=tokens_per_s,
                )
            await self.tokenise()
            self.results = self.model.engine.submit(self.build_job())
        except BaseException:
            self.charge.correct(0)
            if self.ticket is not None:
                self.ticket.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.results is not None and self.charge is not None
        self.results.cancel()
        if self.ticket is not None:
            self.ticket.release()
        if isinstance(error, InvalidField | Overloaded):  # as the next job of the call: it costs nothing
            self.charge.correct(0)

    def check_cut(self) -> None:
        """Pooling leaves out as many tokens as the prompt has, wherever it has gone. Raises InvalidField."""
        is_lost = self.job.prompt.text and not self.model.info.pools_prompt and self.job.truncation == "left"
        if is_lost and self.size.num_chars:
            raise InvalidField(
                f"{self.job.field} cannot be cut on the left (truncation_side, truncation_direction or truncate): that "
                "cuts the prompt, which this model's pooling leaves out. Have it cut on the right",
                param=self.job.field,
            )

    def estimate_inputs(self) -> int:
        """Exact for token ids, guessed from the characters for text."""
        size = self.size
        if not size.num_chars:
            return size.num_ids + self.num_rows
        estimator = self.model.admission.estimator
        most = self.model.tokenizer.limit_tokens(self.job.max_input_tokens)
        return size.num_ids + estimator.estimate(size.num_chars, num_texts=len(self.inputs), max_input_tokens=most)

    @property
    def num_rows(self) -> int:
        """Of what was heard; each is computed like a token."""
        return sum(len(rows) for rows in self.job.features)

    def estimate_answers(self) -> int:
        """Tokens, of all answers to one input."""
        if not self.job.num_answer_tokens:
            return 0
        return self.job.num_sequences * self.model.admission.estimator.estimate_generated(self.job.num_answer_tokens)

    async def tokenise(self) -> None:
        begin_s = monotonic()
        call, job = self.call, self.job
        self.sequences = await self.encode()
        if job.filling is not None:
            self.num_keys = [] if job.filling.is_attended else [sequence.num_tokens for sequence in self.sequences]
            self.sequences = fill_up(self.sequences, job.filling)
        if job.prompt.text and not self.model.info.pools_prompt:
            self.num_prompt_tokens = await self.count_prompt()
        if job.settle is not None:
            self.params = await job.settle(self.sequences)
        num_tokens = sum([len(sequence.input_ids) for sequence in self.sequences]) + self.num_rows
        self.num_tokens = num_tokens
        now_s = monotonic()
        call.times.note_tokens(len(self.sequences), num_tokens, now_s - begin_s)
        assert self.charge is not None
        num_tokens_in_all = num_tokens + self.num_expected * len(self.sequences)
        if self.ticket is not None:
            self.ticket.correct(len(self.sequences) * job.num_answers, num_tokens_in_all)
        self.charge.correct(num_tokens_in_all)
        if self.size.num_chars:
            self.model.admission.estimator.learn(self.size.num_chars, num_tokens)
        if now_s >= call.deadline_s:
            raise DeadlineExceeded("the deadline passed while the text was tokenised")

    @property
    def prompts(self) -> list[TokenArray]:
        """What answers go on from."""
        return list(self.job.openings) or [sequence.input_ids for sequence in self.sequences]

    async def count_prompt(self) -> int:
        """Tokens of the prompt; of the directory's own ones they are counted once."""
        prompt, known = self.job.prompt.text, self.model.prompt_lengths
        key = (prompt, self.job.add_special_tokens)
        if key in known:
            return known[key]
        num_tokens = await count_prompt_tokens(
            self.model.tokenizer, prompt, add_special_tokens=self.job.add_special_tokens
        )
        if prompt in self.model.info.prompts.values():
            known[key] = num_tokens
        return num_tokens

    async def encode(self) -> list[TokenSequence]:
        """Raises InvalidField, also where windows are more than a call may have inputs."""
        job, tokenizer = self.job, self.model.tokenizer
        if job.around is not None:
            return await self.encode_between(*job.around)
        if not job.wants_places:
            return await tokenizer.encode(
                self.inputs,
                truncation=job.truncation,
                field=job.field,
                add_special_tokens=job.add_special_tokens,
                max_tokens=job.max_input_tokens,
                cuts_first=job.cuts_first,
            )
        texts = [item for item in self.inputs if isinstance(item, str | tuple)]
        if job.stride is None:
            self.windows = await tokenizer.locate(texts, truncation=job.truncation, field=job.field)
        else:
            limit = self.model.config.limits.max_client_batch_size
            self.windows = await tokenizer.locate_all(
                texts, stride=job.stride, max_windows=limit, field=job.field, max_tokens=job.max_input_tokens
            )
        return [window.sequence for windows in self.windows for window in windows]

    async def encode_between(self, before: TokenArray, behind: TokenArray) -> list[TokenSequence]:
        job, tokenizer = self.job, self.model.tokenizer
        sequences = await tokenizer.encode(
            self.inputs,
            truncation=job.truncation,
            field=job.field,
            add_special_tokens=False,
            max_tokens=tokenizer.limit_tokens(job.max_input_tokens) - len(before) - len(behind),
        )
        return [TokenSequence(np.concatenate([before, each.input_ids, behind])) for each in sequences]

    def build_job(self) -> Job:
        return Job(
            task=self.job.task.name,
            inputs=self.write_inputs(),
            timeout_s=self.call.deadline_s - monotonic(),
            params=self.params,
            outputs=self.model.outputs if self.job.outputs is None else self.job.outputs,
            priority=self.job.priority,
            salt=self.call.key.salt,
            rows_per_input=self.job.num_answers,
            num_answer_tokens=self.num_expected,
        )

    def write_inputs(self) -> dict[str, Ragged]:
        """With an int32 for each input: `num_prompt_tokens` where pooling leaves any out, of texts, not of ids;
        `num_keys` where not all tokens are attended to; `adapter_ids` where there is an adapter.
        """
        inputs = write_inputs(self.sequences)
        if self.job.openings:
            inputs = {"input_ids": join_rows(self.job.openings), "source_ids": inputs["input_ids"]}
        if self.job.features:
            inputs["features"] = join_rows(self.job.features)
        if self.job.prompt.adapter_id:
            inputs["adapter_ids"] = Ragged(np.full(len(self.sequences), self.job.prompt.adapter_id, np.int32))
        if self.num_prompt_tokens:
            counts = [
                0 if isinstance(item, list | TokenSequence) else min(self.num_prompt_tokens, sequence.num_tokens)
                for item, sequence in zip(self.inputs, self.sequences, strict=True)
            ]
            inputs["num_prompt_tokens"] = Ragged(np.array(counts, np.int32))
        if self.job.list_rows is not None:
            inputs["logit_rows"] = join_rows([self.job.list_rows(sequence) for sequence in self.sequences])
        if self.num_keys:
            inputs["num_keys"] = Ragged(np.array(self.num_keys, np.int32))
        return inputs

    def count_generated(self, num_tokens: int) -> None:
        """In place of what was expected."""
        assert self.charge is not None
        self.charge.correct(self.num_tokens + num_tokens)

    async def collect(self) -> dict[str, Ragged]:
        """All results as one, in the order of the inputs. Raises InvalidAnswer where there is no number."""
        assert self.results is not None
        results: list[Result] = []
        async for result in self.results:
            if result.is_restart:  # a step's results are of one engine, which computes all of its rows again
                again = set(result.rows.tolist())
                results = [kept for kept in results if not again.intersection(kept.rows.tolist())]
            else:
                results.append(result)
        self.call.times.note_engine(
            max([result.queue_s for result in results]), max([result.engine_s for result in results])
        )
        rows = results[0].rows if len(results) == 1 else np.concatenate([result.rows for result in results])
        if len(rows) != len(self.sequences):
            raise RuntimeError(f"{len(self.sequences)} inputs got {len(rows)} rows. This is a bug.")
        arrays = {name: join_results([result.arrays[name] for result in results], rows) for name in results[0].arrays}
        for array in arrays.values():
            check_finite(array)
        return arrays


async def run_job(call: Call, model: ServedModel, job: TextJob) -> dict[str, Ragged]:
    """From text to arrays in one piece."""
    async with OpenJob(call, model, job) as opened:
        return await opened.collect()


async def run_located(call: Call, model: ServedModel, job: TextJob) -> tuple[dict[str, Ragged], list[list[Window]]]:
    """The same for a job that wants places: rows of the windows of all inputs, in their order, and the windows."""
    async with OpenJob(call, model, job) as opened:
        return await opened.collect(), opened.windows


def join_results(parts: Sequence[Ragged], rows: "np.ndarray[Any, np.dtype[np.int32]]") -> Ragged:
    """Row i of the parts end to end belongs to row `rows[i]`: sorted by it."""
    if len(rows) == 1:  # most calls
        return parts[0]
    order = np.argsort(rows, kind="stable").tolist()
    if len(parts) == 1:
        whole = parts[0]
    elif parts[0].row_splits is None:
        whole = Ragged(np.concatenate([part.values for part in parts]))
    else:
        lengths = np.concatenate([part.lengths for part in parts])
        splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        whole = Ragged(np.concatenate([part.values for part in parts]), splits)
    return whole if order == list(range(len(order))) else whole.pick(order)


def check_finite(array: Ragged) -> None:
    """JSON has no NaN, and a client could not use one. Raises InvalidAnswer naming the rows."""
    values = array.values
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    rows = [index for index in range(len(array)) if not np.isfinite(array.row(index)).all()]
    shown = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    raise InvalidAnswer(f"the model computed NaN or infinity for {len(rows)} of {len(array)} inputs (index {shown})")


def check_count(job: TextJob, model: ServedModel) -> None:
    """Raises EmptyInput, InvalidField."""
    limit = model.config.limits.max_client_batch_size
    num_places = len(job.inputs) * job.num_answers
    if job.num_answers > 1 and num_places > limit:
        raise InvalidField(
            f"{job.field} and n ask for {num_places} answers; the limit is {limit}, send several requests",
            param=job.field,
        )
    check_places(num_places, model, job.field)


def check_places(num_inputs: int, model: ServedModel, field: str) -> None:
    """Raises EmptyInput, InvalidField."""
    if not num_inputs:
        raise EmptyInput(f"{field} must not be empty", param=field)
    limit = model.config.limits.max_client_batch_size
    if num_inputs > limit:
        raise InvalidField(
            f"{field} has {num_inputs} items; the limit is {limit} per request, send several", param=field
        )


def take_places(call: Call, model: ServedModel, num_inputs: int) -> Ticket:
    """For work that goes before the job's own, on texts or on sound. Raises EngineUnavailable, Overloaded."""
    check_engine(model)
    return model.admission.admit(num_inputs, 0, deadline_s=call.deadline_s, tokens_per_s=0.0)


def check_engine(model: ServedModel) -> float:
    """The replicas' measured tokens per second, 0 before the first step. Raises EngineUnavailable if none is ready."""
    statuses = model.engine.statuses()
    rates = [status.tokens_per_s for status in statuses if status.is_ready]
    if not rates:
        raise EngineUnavailable(f"model {model.name!r} is not ready: {describe_statuses(statuses)}")
    return sum(rates)


def describe_statuses(statuses: tuple[EngineStatus, ...]) -> str:
    """Why the replicas that are not ready are not."""
    reasons = [f"replica {i}: {status.reason}" for i, status in enumerate(statuses) if not status.is_ready]
    return "; ".join(reasons) or "it has no replica"
