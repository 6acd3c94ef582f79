"""The client and the two loops against a stub server: what is sent, what is counted, and from when time runs."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import pytest
from loadtest_stub import RESET, StubServer, listen_raw

from loadtest.client import Answer, Client
from loadtest.closed_loop import Closed, measure_closed
from loadtest.measure import Result, Traffic
from loadtest.open_loop import Flight, Step, measure_step, poisson_arrivals, run_step
from loadtest.server_process import find_free_port

BODY = b'{"model": "m", "input": "a text", "encoding_format": "base64"}'


def drive(stub: StubServer, scenario: Callable[[Client, list[bytes]], Awaitable[object]]) -> None:
    """Runs a scenario with a client of the stub server, all in one event loop."""

    async def run() -> None:
        async with stub.listen() as url:
            client = Client(url)
            await scenario(client, [client.encode(BODY)])
            await client.abort()

    asyncio.run(run())


async def post(client: Client, request: bytes) -> Answer:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    client.send(request, answered.set_result)
    return await answered


def test_requests_arrive_whole_and_share_a_connection() -> None:
    stub = StubServer()

    async def scenario(client: Client, requests: list[bytes]) -> None:
        answers = [await post(client, requests[0]) for _ in range(5)]
        assert {answer.status for answer in answers} == {200}

    drive(stub, scenario)
    assert stub.num_connections == 1
    assert stub.bodies == [{"model": "m", "input": "a text", "encoding_format": "base64"}] * 5


def test_requests_at_once_get_connections_of_their_own() -> None:
    stub = StubServer(delay_s=0.05)

    async def scenario(client: Client, requests: list[bytes]) -> None:
        await asyncio.gather(*(post(client, requests[0]) for _ in range(10)))
        await asyncio.gather(*(post(client, requests[0]) for _ in range(10)))

    drive(stub, scenario)
    assert stub.num_connections == 10


def test_a_reset_is_an_answer_and_the_next_request_goes_through() -> None:
    stub = StubServer(status_of=lambda number: RESET if number == 1 else 200)

    async def scenario(client: Client, requests: list[bytes]) -> None:
        answers = [await post(client, requests[0]) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 0, 200]
        assert answers[1].error

    drive(stub, scenario)


def test_a_refused_connection_is_an_answer() -> None:
    client = Client(f"http://127.0.0.1:{find_free_port()}")
    answer = asyncio.run(post(client, client.encode(BODY)))
    assert answer == Answer(0, error="ConnectionRefusedError")


def post_raw(answer: bytes, count: int) -> list[Answer]:
    """The answers of a client to which a server says just this, on each connection once."""

    async def run() -> list[Answer]:
        async with listen_raw(answer) as url:
            client = Client(url)
            answers = [await post(client, client.encode(BODY)) for _ in range(count)]
            await client.abort()
            return answers

    return asyncio.run(run())


def test_what_is_not_http_is_an_answer() -> None:
    (answer,) = post_raw(b"SSH-2.0-hello\r\n", 1)
    assert answer.status == 0 and answer.error.startswith("HttpParser")


def test_half_an_answer_is_an_error() -> None:
    (answer,) = post_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", 1)
    assert answer.status == 0 and answer.error


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_a_connection_the_server_ends_is_not_used_again(head: bytes) -> None:
    assert post_raw(head + b"Content-Length: 2\r\n\r\nok", 3) == [Answer(200)] * 3


def test_only_plain_http_is_spoken() -> None:
    with pytest.raises(ValueError, match="plain HTTP"):
        Client("https://127.0.0.1:8000")


def test_poisson_arrivals_have_the_rate_and_its_randomness() -> None:
    arrivals = list(poisson_arrivals(1000, 20, seed=3))
    assert arrivals == list(poisson_arrivals(1000, 20, seed=3)) != list(poisson_arrivals(1000, 20, seed=4))
    assert arrivals == sorted(arrivals) and arrivals[0] > 0 and arrivals[-1] < 20
    assert len(arrivals) == pytest.approx(20_000, rel=0.03)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.1)  # as of an exponential distribution


def fly(stub: StubServer, step: Step, *, meanwhile: Callable[[asyncio.AbstractEventLoop], object]) -> Flight:
    """One step; `meanwhile` may plan what happens during it."""
    flights: list[Flight] = []

    async def scenario(client: Client, requests: list[bytes]) -> None:
        meanwhile(asyncio.get_running_loop())
        flights.append(await run_step(client, itertools.cycle(requests), step))

    drive(stub, scenario)
    return flights[0]


def test_a_stall_of_the_server_shows_in_every_request_due_while_it_lasts() -> None:
    stub = StubServer()
    stub.gate.clear()
    opened: list[float] = []

    def watch(loop: asyncio.AbstractEventLoop) -> None:
        # Twenty requests arrive although none is answered, and only that ends the stall.
        if len(stub.bodies) < 20:
            loop.call_later(0.005, watch, loop)
            return
        opened.append(loop.time())
        stub.gate.set()

    flight = fly(stub, Step(rate=100, duration_s=0.6, warmup_s=0, slo_ms=2000), meanwhile=watch)
    assert len(flight.samples) == len(list(poisson_arrivals(100, 0.6, 0)))
    due = [sample for sample in flight.samples if sample.start_s < opened[0]]
    assert len(due) >= 20
    assert all(sample.end_s >= opened[0] for sample in due)


def test_a_stall_of_the_client_counts_too() -> None:
    blocked: list[float] = []

    def plan_block(loop: asyncio.AbstractEventLoop) -> None:
        def block() -> None:
            blocked.append(loop.time())
            time.sleep(0.2)
            blocked.append(loop.time())

        loop.call_later(0.1, block)

    flight = fly(StubServer(), Step(rate=200, duration_s=0.5, warmup_s=0, slo_ms=2000), meanwhile=plan_block)
    late = [sample for sample in flight.samples if blocked[0] < sample.start_s < blocked[1]]
    assert late  # they could not be sent then, yet their time ran
    assert all(sample.end_s >= blocked[1] for sample in late)


def measure_stub(stub: StubServer, step: Step) -> Result:
    results: list[Result] = []

    async def scenario(client: Client, requests: list[bytes]) -> None:
        results.append(await measure_step(client, Traffic("mine", requests, 1), step))

    drive(stub, scenario)
    return results[0]


def test_a_step_within_the_capacity_meets_its_slo() -> None:
    row = measure_stub(StubServer(), Step(rate=100, duration_s=0.6, warmup_s=0.2, slo_ms=5000))
    assert row.meets_slo and not row.is_saturated
    assert (row.errors, row.rejected, row.offered_per_s) == (0, 0, 100)
    assert 1 <= row.p50_ms <= row.p95_ms <= row.p99_ms <= row.p999_ms
    assert row.requests == sum(arrival >= 0.2 for arrival in poisson_arrivals(100, 0.8, 0))
    assert row.client_cpu > 0 and row.lag_max_ms >= row.lag_p99_ms >= 0


def test_a_step_far_above_the_capacity_stops_early() -> None:
    stub = StubServer(delay_s=0.01, concurrency=1)
    row = measure_stub(stub, Step(rate=1000, duration_s=60, slo_ms=20))
    assert row.is_saturated and not row.meets_slo
    assert row.requests == len(stub.bodies) < 5000
    assert 0 < row.requests_per_s <= 100


def test_a_server_that_hangs_ends_in_timeouts() -> None:
    stub = StubServer()
    stub.gate.clear()
    row = measure_stub(stub, Step(rate=100, duration_s=0.2, warmup_s=0, timeout_s=0.1, slo_ms=5000))
    assert row.errors == row.requests > 0
    assert row.failures == f"Timeout: {row.requests}"
    assert not row.meets_slo and row.requests_per_s == 0


def test_rejections_are_counted_apart_from_errors() -> None:
    stub = StubServer(status_of=lambda number: 429 if number % 2 else 200)
    row = measure_stub(stub, Step(rate=100, duration_s=0.5, warmup_s=0, slo_ms=5000))
    assert row.rejected == row.retry_after == len(stub.bodies) // 2
    assert row.errors == 0 and not row.meets_slo


def closed(stub: StubServer, plan: Closed) -> Result:
    results: list[Result] = []

    async def scenario(client: Client, requests: list[bytes]) -> None:
        results.append(await measure_closed(client, Traffic("mine", requests, 32), plan))

    drive(stub, scenario)
    return results[0]


def test_a_closed_loop_sends_exactly_the_requests_asked_for() -> None:
    stub = StubServer(status_of=lambda number: [200, 429, 500, RESET][number % 4])
    row = closed(stub, Closed(connections=3, num_requests=40))
    assert row.requests == len(stub.bodies) == 40
    assert (row.rejected, row.retry_after, row.errors) == (10, 10, 20)
    assert "HTTP 500: 10" in row.failures
    assert row.texts_per_s == pytest.approx(32 * row.requests_per_s)


def test_a_closed_loop_keeps_one_request_per_connection() -> None:
    stub = StubServer(delay_s=0.05)
    row = closed(stub, Closed(connections=5, duration_s=0.4, warmup_s=0.1))
    assert stub.num_connections == 5
    assert 0 < row.requests_per_s <= 5 / 0.05 * 1.001  # the clock is a float
    assert row.p50_ms >= 49  # a timer may fire a little early
    assert row.connections == 5


@pytest.mark.parametrize("num_requests", [None, 100])
def test_a_closed_loop_of_a_server_that_hangs_ends(num_requests: int | None) -> None:
    stub = StubServer()
    stub.gate.clear()
    plan = Closed(connections=4, duration_s=0.1, warmup_s=0, num_requests=num_requests, timeout_s=0.1)
    row = closed(stub, plan)
    assert row.errors == row.requests == 4
