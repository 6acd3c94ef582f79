"""Several engines as one: who gets a call, and how a large one is cut and put together again."""

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wire.client import SPLIT_TOKENS, ReplicaSet, split_call
from server.wire.job import Answer, EngineFailure, EngineStatus, EngineUnavailable, TokenSequence
from tests.pure.fake_requests import make_sequence

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


READY = EngineStatus(True, "ready")


@dataclass
class FakeReplica:
    """A SocketEngine without a socket: a row is the sequence's first id. The later of two calls ends first."""

    last: EngineStatus = READY
    pending_tokens: int = 0
    error: Exception | None = None
    calls: list[list[TokenSequence]] = field(default_factory=list)
    num_cancelled: int = 0

    def status(self) -> tuple[EngineStatus, ...]:
        return (self.last,)

    async def run(self, sequences: list[TokenSequence], deadline_s: float) -> Answer:
        self.calls.append(sequences)
        self.pending_tokens += sum(sequence.num_tokens for sequence in sequences)
        if self.error is not None:
            raise self.error
        try:
            await asyncio.sleep(0.02 / len(self.calls))
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        rows = np.array([[sequence.input_ids[0]] for sequence in sequences], np.float32)
        return Answer(rows, queue_s=0.1 * len(self.calls), engine_s=0.2)

    async def close(self) -> None:
        self.last = EngineStatus(False, "closed")


def make_set(*replicas: FakeReplica) -> ReplicaSet:
    return ReplicaSet(list(replicas))  # type: ignore[arg-type]


async def test_call_goes_to_the_replica_with_the_fewest_tokens_waiting() -> None:
    replicas = FakeReplica(pending_tokens=50), FakeReplica(pending_tokens=10), FakeReplica(pending_tokens=30)
    await make_set(*replicas).run([make_sequence(5)], 1.0)
    assert [len(replica.calls) for replica in replicas] == [0, 1, 0]


async def test_replica_that_is_not_ready_gets_nothing() -> None:
    starting = FakeReplica(EngineStatus(False, "starting"))
    ready = FakeReplica(pending_tokens=1000)
    await make_set(starting, ready).run([make_sequence(5)] * 3, 1.0)
    assert (len(starting.calls), len(ready.calls)) == (0, 1)


async def test_no_replica_ready_says_why() -> None:
    with pytest.raises(EngineUnavailable, match="warming up"):
        await make_set(FakeReplica(EngineStatus(False, "warming up"))).run([make_sequence(5)], 1.0)


async def test_large_call_is_spread_and_put_together_in_order() -> None:
    replicas = FakeReplica(), FakeReplica()
    sequences = [make_sequence(200, first) for first in range(1, 31)]
    answer = await make_set(*replicas).run(sequences, 1.0)
    assert answer.values[:, 0].tolist() == list(range(1, 31))
    assert answer.queue_s == pytest.approx(0.3), "the slowest part's"
    # 6 parts of at most 1,024 tokens
    assert [len(replica.calls) for replica in replicas] == [3, 3]


async def test_only_replica_gets_a_call_whole() -> None:
    replica = FakeReplica()
    await make_set(replica).run([make_sequence(SPLIT_TOKENS)] * 3, 1.0)
    assert [len(call) for call in replica.calls] == [3]


async def test_failed_part_fails_the_call_as_what_it_is_and_stops_the_others() -> None:
    replicas = FakeReplica(), FakeReplica(error=EngineFailure("so it goes"))
    with pytest.raises(EngineFailure, match="so it goes"):
        await make_set(*replicas).run([make_sequence(SPLIT_TOKENS)] * 2, 1.0)
    assert replicas[0].num_cancelled == 1


async def test_cancelling_a_call_cancels_all_its_parts() -> None:
    replicas = FakeReplica(), FakeReplica()
    task = asyncio.create_task(make_set(*replicas).run([make_sequence(SPLIT_TOKENS)] * 4, 1.0))
    while not all(len(replica.calls) == 2 for replica in replicas):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [replica.num_cancelled for replica in replicas] == [2, 2]


async def test_status_has_one_entry_per_replica_and_close_closes_all() -> None:
    replicas = FakeReplica(), FakeReplica(EngineStatus(False, "starting"))
    group = make_set(*replicas)
    assert [status.is_ready for status in group.status()] == [True, False]
    await group.close()
    assert [status.reason for status in group.status()] == ["closed", "closed"]


lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(lengths, st.integers(1, 60))
@settings(deadline=None)
def test_parts_are_the_call_in_order_and_within_the_limit(seqlens: list[int], max_tokens: int) -> None:
    sequences = [make_sequence(seqlen) for seqlen in seqlens]
    parts = split_call(sequences, max_tokens)
    assert [id(sequence) for part in parts for sequence in part] == [id(sequence) for sequence in sequences]

    def count(part: list[TokenSequence]) -> int:
        return sum(sequence.num_tokens for sequence in part)

    assert all(len(part) == 1 or count(part) <= max_tokens for part in parts)
    # No part could have taken the next one's first input as well: parts are as few as their order allows.
    assert all(count(part) + after[0].num_tokens > max_tokens for part, after in pairwise(parts))


def test_no_limit_means_no_split() -> None:
    sequences = [make_sequence(1000)] * 5
    assert split_call(sequences, None) == [sequences]
