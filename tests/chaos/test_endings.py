"""Servers of their own: those that end under load, or have an engine that never computes."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.servers import ChaosServer, start_chaos_server, write_chaos_config

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[ChaosServer]:
    """The second of its engines fails every step that it should do for somebody, and is replaced by one like it."""
    config = write_chaos_config(
        tmp_path, has_generator=False, engine={"null_failing_replica": 1}, server={"access_log": "all"}
    )
    server = start_chaos_server(config, has_generator=False)
    yield server
    if server.process.poll() is None:
        server.stop()


def test_a_replica_that_fails_every_step_and_sigterm_under_load(failing: ChaosServer) -> None:
    """Its sibling computes what it cannot; and what has been accepted when the end comes is answered before it."""
    ledger = Ledger(failing, "replica that fails every step")
    asyncio.run(ledger.embed_steadily(3.0))
    ledger.close()
    # Refused by 503, or not accepted: there is nobody who listens.
    ending = Ledger(failing, "SIGTERM under load", refusals=frozenset({503}), ends=True)

    async def end() -> None:
        await asyncio.sleep(0.5)
        failing.process.send_signal(signal.SIGTERM)

    async def both() -> None:
        await asyncio.gather(ending.embed_steadily(2.0), end())

    asyncio.run(both())
    print(ending)
    assert ending.lost == [] and ending.answered > 0
    assert ending.sent == ending.answered + ending.refused + ending.unheard
    assert failing.process.wait(20) == 0
    # Whatever it has heard it has answered: a connection that was cut had not been let in.
    seen = [line for line in failing.log.splitlines() if '"path":"/v1/embeddings"' in line]
    assert not [line for line in seen if '"status":200' not in line and '"status":503' not in line]
    assert len(seen) == ledger.answered + ending.answered + ending.refused
