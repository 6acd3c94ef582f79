"""Several engines as one: who gets a job, how a large one is cut and put together again, and what a failure does."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable, Unservable
from server.wire import replica_set
from server.wire.job import EngineStatus, Job, Ragged, Result
from server.wire.replica_set import (
    FAILURES_TO_OPEN,
    FIRST_OPEN_S,
    LONGEST_OPEN_S,
    SPLIT_GAIN_S,
    Breaker,
    Replica,
    ReplicaSet,
    share_out,
)
from server.wire.result_stream import ResultStream
from tests.pure.fake_requests import make_job, make_sequence

READY = EngineStatus(True, "ready", tokens_per_s=1000.0)


@dataclass
class FakeEngine:
    """A SocketClient without a socket, of 1,000 tokens a second. Jobs wait until a test says what becomes of them.

    Mutable: all.
    """

    status: EngineStatus = READY
    pending_tokens: int = 0
    error: Exception | None = None
    jobs: list[Job] = field(default_factory=list)
    streams: list[ResultStream] = field(default_factory=list)
    cancelled: list[list[int]] = field(default_factory=list)

    def submit(self, job: Job) -> ResultStream:
        if self.error is not None:
            raise self.error
        self.jobs.append(job)
        self.streams.append(ResultStream(lambda rows: self.cancelled.append(list(rows))))
        return self.streams[-1]

    def tell(self, *rows: int, is_last: bool = False) -> None:
        """Results of its newest job: each row is the first token of its input."""
        job = self.jobs[-1]
        firsts = [[int(job.input_ids.row(row // job.rows_per_input)[0])] for row in rows]
        array = Ragged(np.array(firsts, np.float32).reshape(-1, 1))
        self.streams[-1].put(Result(np.array(rows, np.int32), {"firsts": array}, is_last))

    def finish(self) -> None:
        self.tell(*range(self.jobs[-1].num_inputs * self.jobs[-1].rows_per_input), is_last=True)

    def fail(self, error: Exception) -> None:
        self.streams[-1].fail(error)

    async def close(self) -> None:
        self.status = EngineStatus(False, "closed")


@dataclass
class Heard:
    """What whoever submitted has been told. Mutable."""

    stream: ResultStream
    firsts: dict[int, float] = field(default_factory=dict)
    has_ended: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.stream.listen(self.hear, self.hear_error)

    def hear(self, result: Result) -> None:
        assert not self.has_ended
        self.has_ended = result.is_last
        if result.is_restart:
            for row in result.rows.tolist():
                self.firsts.pop(row, None)
            return
        for row, first in zip(result.rows.tolist(), result.arrays["firsts"].values[:, 0].tolist(), strict=True):
            assert row not in self.firsts
            self.firsts[row] = first

    def hear_error(self, error: Exception) -> None:
        self.error = error


class Clock:
    """Mutable: the time, wound by a test."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(replica_set, "monotonic", clock)
    return clock


def make_set(*engines: FakeEngine) -> ReplicaSet:
    return ReplicaSet(list(engines))  # type: ignore[arg-type]


def submit(group: ReplicaSet, seqlens: Sequence[int], *, rows_per_input: int = 1, timeout_s: float = 30.0) -> Heard:
    """Input i begins with token i + 1."""
    job = make_job([make_sequence(seqlen, index + 1) for index, seqlen in enumerate(seqlens)], timeout_s=timeout_s)
    return Heard(group.submit(replace(job, rows_per_input=rows_per_input)))


class TestChoice:
    """Who gets a job."""

    def test_replica_that_is_done_soonest(self) -> None:
        """By time, not by tokens: the second has more to do and is faster."""
        engines = FakeEngine(pending_tokens=50), FakeEngine(replace(READY, tokens_per_s=9000.0), pending_tokens=90)
        submit(make_set(*engines), [5])
        assert [len(engine.jobs) for engine in engines] == [0, 1]

    def test_replica_that_is_not_ready_gets_nothing(self) -> None:
        starting, ready = FakeEngine(EngineStatus(False, "starting")), FakeEngine(pending_tokens=1000)
        submit(make_set(starting, ready), [500] * 3)
        assert (len(starting.jobs), len(ready.jobs)) == (0, 1)

    def test_no_replica_ready_says_why(self) -> None:
        group = make_set(FakeEngine(EngineStatus(False, "warming up")), FakeEngine(EngineStatus(False, "gone")))
        with pytest.raises(EngineUnavailable, match="warming up; gone"):
            submit(group, [5])

    def test_rates_not_known_yet_share_nothing_out(self) -> None:
        engines = [FakeEngine(EngineStatus(True, "ready")) for _ in range(2)]
        submit(make_set(*engines), [1000] * 4)
        assert [len(engine.jobs) for engine in engines] == [1, 0]

    @pytest.mark.anyio
    async def test_status_has_one_entry_per_replica_and_close_closes_all(self, anyio_backend: str) -> None:
        group = make_set(FakeEngine(), FakeEngine(EngineStatus(False, "starting")))
        assert [status.is_ready for status in group.statuses()] == [True, False]
        await group.close()
        assert [status.reason for status in group.statuses()] == ["closed", "closed"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def share(seqlens: Sequence[int], *engines: FakeEngine, num_answer_tokens: int = 0) -> list[tuple[int, int, int]]:
    """(which engine, first input, last input)"""
    replicas = sorted((Replica(engine) for engine in engines), key=lambda each: each.backlog_s)  # type: ignore[arg-type]
    job = replace(make_job([make_sequence(seqlen) for seqlen in seqlens]), num_answer_tokens=num_answer_tokens)
    places = {id(engine): place for place, engine in enumerate(engines)}
    return [(places[id(replica.engine)], first, last) for replica, first, last in share_out(job, replicas)]


class TestShareOut:
    """How a job is cut by the time that parts are predicted to take."""

    def test_equal_replicas_get_halves(self) -> None:
        assert share([100] * 10, FakeEngine(), FakeEngine()) == [(0, 0, 5), (1, 5, 10)]

    def test_faster_replica_gets_more(self) -> None:
        faster = FakeEngine(replace(READY, tokens_per_s=4000.0))
        assert share([100] * 10, FakeEngine(), faster) == [(0, 0, 2), (1, 2, 10)]

    def test_busy_replica_gets_less_and_a_busier_one_nothing(self) -> None:
        """All end at one time: 1,400 tokens are 700 for each of the first two."""
        engines = FakeEngine(), FakeEngine(pending_tokens=400), FakeEngine(pending_tokens=900)
        assert share([100] * 10, *engines) == [(0, 0, 7), (1, 7, 10)]

    def test_what_gains_too_little_is_not_cut(self) -> None:
        fast = [FakeEngine(replace(READY, tokens_per_s=1e6)) for _ in range(2)]
        num_tokens = int(2 * SPLIT_GAIN_S * 1e6)
        assert len(share([num_tokens // 10] * 9, *fast)) == 1
        assert len(share([num_tokens // 10] * 11, *fast)) == 2

    def test_eight_short_texts_are_cut_where_a_token_takes_long(self) -> None:
        """264 tokens at 8,000 a second: 33 ms on one, while the other is idle."""
        engines = [FakeEngine(replace(READY, tokens_per_s=8000.0)) for _ in range(2)]
        assert share([33] * 8, *engines) == [(0, 0, 4), (1, 4, 8)]

    def test_one_input_is_never_cut(self) -> None:
        assert share([10_000], FakeEngine(), FakeEngine()) == [(0, 0, 1)]

    def test_prompts_weigh_what_their_answers_will(self) -> None:
        assert share([1, 1, 1, 1], FakeEngine(), FakeEngine(), num_answer_tokens=500) == [(0, 0, 2), (1, 2, 4)]

    @given(
        st.lists(st.integers(1, 500), min_size=1, max_size=30),
        st.lists(st.tuples(st.integers(0, 5000), st.sampled_from([10.0, 1e3, 1e5])), min_size=1, max_size=5),
    )
    @settings(deadline=None)
    def test_parts_are_the_job_in_order_each_on_its_own_replica(
        self, seqlens: list[int], drawn: list[tuple[int, float]]
    ) -> None:
        engines = [FakeEngine(replace(READY, tokens_per_s=rate), pending_tokens=tokens) for tokens, rate in drawn]
        parts = share(seqlens, *engines)
        assert [index for _, first, last in parts for index in range(first, last)] == list(range(len(seqlens)))
        assert len({engine for engine, *_ in parts}) == len(parts)

    @given(
        st.lists(st.integers(1, 500), min_size=2, max_size=30),
        st.lists(st.tuples(st.integers(0, 5000), st.sampled_from([1e3, 4e3])), min_size=2, max_size=5),
    )
    @settings(deadline=None)
    def test_cut_job_ends_no_later_than_whole_but_for_one_input(
        self, seqlens: list[int], drawn: list[tuple[int, float]]
    ) -> None:
        """Inputs are not cut, so a part may be one input over its share."""
        engines = [FakeEngine(replace(READY, tokens_per_s=rate), pending_tokens=tokens) for tokens, rate in drawn]

        def end_s(engine: FakeEngine, tokens: int) -> float:
            return (engine.pending_tokens + tokens) / engine.status.tokens_per_s

        first = min(engines, key=lambda engine: end_s(engine, 0))
        parts = [(engines[place], sum(seqlens[begin:end])) for place, begin, end in share(seqlens, *engines)]
        whole_s = end_s(first, sum(seqlens))
        assert max(end_s(engine, tokens - max(seqlens)) for engine, tokens in parts) <= whole_s


class TestSplitJob:
    """A job on several replicas is one stream."""

    def test_results_of_all_parts_come_as_those_of_the_job(self) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [200] * 10)
        engines[1].tell(0, 3)
        engines[1].tell(1, 2, 4, is_last=True)
        assert not heard.has_ended
        engines[0].finish()
        assert heard.firsts == {row: row + 1 for row in range(10)}
        assert heard.has_ended

    def test_several_answers_to_each_input_keep_their_rows(self) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [200] * 4, rows_per_input=3)
        for engine in engines:
            engine.finish()
        assert heard.firsts == {row: row // 3 + 1 for row in range(12)}

    def test_cancel_cancels_all_parts(self) -> None:
        engines = FakeEngine(), FakeEngine()
        submit(make_set(*engines), [200] * 4).stream.cancel()
        assert [engine.cancelled for engine in engines] == [[[]], [[]]]

    def test_cancelled_rows_go_to_whose_they_are(self) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [200] * 4, rows_per_input=2)
        heard.stream.cancel([1, 3, 6])
        assert [engine.cancelled for engine in engines] == [[[1, 3]], [[2]]]
        heard.stream.cancel([4])
        assert [engine.cancelled for engine in engines] == [[[1, 3]], [[2], [0]]]
        for engine in engines:
            engine.finish()
        assert heard.has_ended

    def test_failed_part_fails_the_job_as_what_it_is_and_stops_the_others(self) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [200] * 4)
        engines[1].fail(Unservable("so it goes"))
        assert isinstance(heard.error, Unservable)
        assert engines[0].cancelled == [[]]
        assert len(engines[0].jobs) == 1

    def test_part_that_cannot_begin_leaves_no_other_behind(self) -> None:
        """One is full and its sibling gone: nothing of the job may go on."""
        gone = EngineUnavailable("gone")
        engines = FakeEngine(error=gone), FakeEngine(error=gone), FakeEngine(pending_tokens=1)
        heard = submit(make_set(*engines), [200] * 9)
        assert heard.error is gone
        assert not engines[2].jobs


@pytest.mark.parametrize("kind", [EngineUnavailable, EngineFailure])
class TestSecondTry:
    """What an engine cannot finish a sibling computes, once, as long as the client has not heard of it."""

    def test_sibling_computes_it(self, clock: Clock, kind: type[Exception]) -> None:
        engines = FakeEngine(), FakeEngine(pending_tokens=100)
        heard = submit(make_set(*engines), [5], timeout_s=10.0)
        clock.now_s += 4.0
        engines[0].fail(kind("broken"))
        assert heard.error is None
        assert engines[1].jobs[0].timeout_s == 6.0, "The time that is left."
        engines[1].finish()
        assert heard.has_ended and heard.firsts == {0: 1.0}

    def test_only_the_failed_part_moves(self, clock: Clock, kind: type[Exception]) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [200] * 4, rows_per_input=2)
        engines[1].fail(kind("broken"))
        assert [len(engine.jobs) for engine in engines] == [2, 1]
        assert engines[0].jobs[1].input_ids.row(0)[0] == 3
        heard.stream.cancel([5])
        assert engines[0].cancelled == [[1]]
        engines[0].finish()
        engines[0].streams[0].put(
            Result(np.arange(4, dtype=np.int32), {"firsts": Ragged(np.ones((4, 1), np.float32))}, True)
        )
        assert set(heard.firsts) == set(range(8))

    def test_second_failure_is_told(self, kind: type[Exception]) -> None:
        engines = FakeEngine(), FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [5])
        engines[0].fail(kind("one"))
        engines[1].fail(kind("two"))
        assert str(heard.error) == "two"
        assert not engines[2].jobs

    def test_nothing_is_tried_again_of_which_the_client_has_heard(self, kind: type[Exception]) -> None:
        """An answer half told would go on as another one."""
        engines = FakeEngine(), FakeEngine(pending_tokens=10_000)
        heard = submit(make_set(*engines), [5, 5])
        engines[0].tell(1)
        heard.stream.told.add(1)
        engines[0].fail(kind("broken"))
        assert isinstance(heard.error, kind)
        assert not engines[1].jobs

    def test_what_the_client_has_not_heard_begins_anew(self, kind: type[Exception]) -> None:
        """However much the engine had said of it."""
        engines = FakeEngine(), FakeEngine(pending_tokens=10_000)
        heard = submit(make_set(*engines), [5, 5])
        engines[0].tell(1)
        engines[0].fail(kind("broken"))
        assert heard.error is None and heard.firsts == {}
        engines[1].finish()
        assert heard.has_ended and heard.firsts == {0: 1.0, 1: 2.0}

    def test_other_parts_stay_as_they_are(self, kind: type[Exception]) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [200] * 4)
        engines[0].tell(0)
        heard.stream.told.add(0)
        engines[1].tell(1)
        engines[1].fail(kind("broken"))
        assert heard.error is None and heard.firsts == {0: 1.0}

    def test_what_was_not_read_is_taken_back(self, kind: type[Exception]) -> None:
        """Else the reader could tell of it, and then meet the restart."""
        engines = FakeEngine(), FakeEngine(pending_tokens=10_000)
        job = make_job([make_sequence(5, 1)], timeout_s=30.0)
        stream = make_set(*engines).submit(job)
        engines[0].tell(0)
        engines[0].fail(kind("broken"))
        heard = Heard(stream)
        assert heard.firsts == {}
        engines[1].finish()
        assert heard.has_ended and heard.firsts == {0: 1.0}

    def test_no_sibling_is_ready(self, kind: type[Exception]) -> None:
        engines = FakeEngine(), FakeEngine(EngineStatus(False, "starting"))
        heard = submit(make_set(*engines), [5])
        engines[0].fail(kind("broken"))
        assert isinstance(heard.error, kind)

    def test_cancelled_job_is_not_tried_again(self, kind: type[Exception]) -> None:
        engines = FakeEngine(), FakeEngine()
        heard = submit(make_set(*engines), [5])
        heard.stream.cancel()
        engines[0].fail(kind("broken"))
        assert not engines[1].jobs


@pytest.mark.parametrize("kind", [DeadlineExceeded, Unservable])
def test_what_no_sibling_could_mend_is_told_at_once(kind: type[Exception]) -> None:
    engines = FakeEngine(), FakeEngine()
    heard = submit(make_set(*engines), [5])
    engines[0].fail(kind("no"))
    assert isinstance(heard.error, kind)
    assert not engines[1].jobs


def test_engine_that_is_gone_when_asked_is_passed_over() -> None:
    """Its status is not the newest."""
    engines = FakeEngine(error=EngineUnavailable("gone")), FakeEngine(pending_tokens=100)
    heard = submit(make_set(*engines), [5])
    engines[1].finish()
    assert heard.has_ended


class TestBlame:
    """Who fails where others succeed gets no work for a while."""

    def fail_first(self, group: ReplicaSet, engines: Sequence[FakeEngine], *, does_sibling_succeed: bool) -> None:
        submit(group, [5])
        engines[0].fail(EngineFailure("broken"))
        if does_sibling_succeed:
            engines[1].finish()
        else:
            engines[1].fail(EngineFailure("broken"))

    def test_engine_that_fails_fast_does_not_attract_all_work(self, clock: Clock) -> None:
        engines = FakeEngine(), FakeEngine(pending_tokens=100)
        group = make_set(*engines)
        for _ in range(FAILURES_TO_OPEN):
            self.fail_first(group, engines, does_sibling_succeed=True)
        submit(group, [5])
        assert (len(engines[0].jobs), len(engines[1].jobs)) == (FAILURES_TO_OPEN, FAILURES_TO_OPEN + 1)
        clock.now_s += FIRST_OPEN_S
        submit(group, [5])
        assert len(engines[0].jobs) == FAILURES_TO_OPEN + 1

    def test_engine_that_fails_in_the_middle_of_answers_is_left_alone(self, clock: Clock) -> None:
        """They are not tried again, so no sibling shows whose fault it was."""
        engines = FakeEngine(), FakeEngine(pending_tokens=100)
        group = make_set(*engines)
        for _ in range(FAILURES_TO_OPEN):
            heard = submit(group, [5])
            engines[0].tell(0)
            heard.stream.told.add(0)
            engines[0].fail(EngineFailure("broken"))
        submit(group, [5])
        assert (len(engines[0].jobs), len(engines[1].jobs)) == (FAILURES_TO_OPEN, 1)

    def test_job_that_fails_everywhere_blames_nobody(self, clock: Clock) -> None:
        """It is the job's own fault: no client may talk engines down."""
        engines = FakeEngine(), FakeEngine(pending_tokens=100)
        group = make_set(*engines)
        for _ in range(3 * FAILURES_TO_OPEN):
            self.fail_first(group, engines, does_sibling_succeed=False)
        assert [replica.breaker.num_failures for replica in group.replicas] == [0, 0]

    def test_only_engine_there_is_gets_work_whatever_it_did(self, clock: Clock) -> None:
        engine = FakeEngine()
        group = make_set(engine)
        group.replicas[0].breaker.open_until_s = clock.now_s + 100.0
        submit(group, [5])
        assert len(engine.jobs) == 1

    def test_breaker_opens_for_longer_each_time_and_success_closes_it(self) -> None:
        breaker = Breaker()
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.note_failure(0.0)
        assert not breaker.is_open(0.0)
        for length_s in (FIRST_OPEN_S, 2 * FIRST_OPEN_S, 4 * FIRST_OPEN_S):
            breaker.note_failure(0.0)
            assert breaker.is_open(0.99 * length_s) and not breaker.is_open(length_s)
        for _ in range(100):
            breaker.note_failure(0.0)
        assert breaker.is_open(0.99 * LONGEST_OPEN_S) and not breaker.is_open(LONGEST_OPEN_S)
        breaker.note_success()
        assert not breaker.is_open(0.0)
        breaker.note_failure(0.0)
        assert not breaker.is_open(0.0)
