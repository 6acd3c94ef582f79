"""One server for most scenarios, as each leaves it as it was: that is what they check in the end."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.chaos.exchange import exchange, write_request
from tests.chaos.ledger import PROMPT
from tests.chaos.servers import ChaosServer, start_chaos_server, write_chaos_config


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    folder = tmp_path_factory.mktemp("chaos")
    server = start_chaos_server(
        write_chaos_config(
            folder, server={"http_workers": 2}, limits={"max_concurrent_requests": 64, "max_client_batch_size": 64}
        )
    )
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def story(server: ChaosServer) -> str:
    """What the generator says to the prompt of `Ledger.generate`, when all is quiet."""

    answer = asyncio.run(exchange(server.port, write_request("/v1/completions", PROMPT)))
    return str(json.loads(answer.body)["choices"][0]["text"])
