"""Faults of engines and workers, and more load than can be borne: what is accepted is answered, what is not is told."""

import asyncio
import os
import signal
from collections.abc import Awaitable
from functools import partial

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.servers import FAIL_WORD, NAN_WORD, ChaosServer

pytestmark = pytest.mark.chaos


async def gather(*work: Awaitable[object]) -> None:
    await asyncio.gather(*work)


async def strike(pids: list[int], signal_number: int, after_s: float) -> None:
    await asyncio.sleep(after_s)
    for pid in pids:
        os.kill(pid, signal_number)


def test_ten_times_the_load(server: ChaosServer) -> None:
    """As many at once as ten times the places: some hear 429, nobody hears anything else."""
    ledger = Ledger(server, "overload by 10", refusals=frozenset({429}))
    asyncio.run(gather(*(ledger.embed(f"word{index % 50} word1 word2") for index in range(640))))
    ledger.close()
    assert ledger.answered >= 64


def test_an_item_that_is_no_number(server: ChaosServer) -> None:
    """It alone is told so."""
    ledger = Ledger(server, "NaN item")
    bad = (ledger.expect(500, "invalid_answer", "/v1/embeddings", {"input": f"word1 {NAN_WORD}"}) for _ in range(10))
    asyncio.run(gather(ledger.embed_steadily(1.0), *bad))
    ledger.close()
    assert ledger.refused == 10


def test_an_item_that_raises(server: ChaosServer) -> None:
    """Those in the same step are computed again without it."""
    ledger = Ledger(server, "raising item")
    bad = (ledger.expect(500, "engine_failure", "/v1/embeddings", {"input": f"word1 {FAIL_WORD}"}) for _ in range(10))
    asyncio.run(gather(ledger.embed_steadily(1.0), *bad))
    ledger.close()
    assert ledger.refused == 10


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_engine_is_killed_or_stopped(server: ChaosServer, story: str, signal_number: signal.Signals) -> None:
    """One of each model's two: its sibling computes what it had, but for streams that had begun."""
    ledger = Ledger(server, f"engine {signal_number.name}")
    victims = [server.find_engines(0)[0], server.find_engines(1)[0]]

    asyncio.run(
        gather(
            ledger.embed_steadily(2.0, num_clients=8),
            ledger.generate_steadily(2.0, story),
            *(ledger.repeat(2.0, partial(ledger.generate_whole, story)) for _ in range(4)),
            ledger.repeat(2.0, ledger.embed_many),
            strike(victims, signal_number, 0.5),
        )
    )
    server.wait_ready()
    assert not set(victims) & {*server.find_engines(0), *server.find_engines(1)}
    ledger.close()
    assert ledger.interrupted <= 4  # as many as were under way


@pytest.mark.slow
def test_time_jumps(server: ChaosServer) -> None:
    """All processes stand still for longer than a silent engine or a hanging step is given, as those of a machine that
    is put to sleep: to their clocks that is one long step. Nobody is given up for it, and nothing is lost."""
    ledger = Ledger(server, "clock jump")
    modules = ("server.processes.engine_process", "server.processes.http_process")
    pids = [server.process.pid, *(pid for module in modules for pid in server.children(module))]

    async def sleep() -> None:
        await strike(pids, signal.SIGSTOP, 0.5)
        await strike(pids, signal.SIGCONT, 4.0)

    asyncio.run(gather(ledger.embed_steadily(6.0), sleep()))
    server.wait_ready()
    ledger.close()


def test_an_http_worker_is_killed(server: ChaosServer) -> None:
    """Its clients see a broken connection and ask again: the other worker answers."""
    ledger = Ledger(server, "HTTP worker SIGKILL", has_retries=True)
    victims = server.children("server.processes.http_process")[:1]

    asyncio.run(gather(ledger.embed_steadily(2.0), strike(victims, signal.SIGKILL, 0.5)))
    ledger.close()
