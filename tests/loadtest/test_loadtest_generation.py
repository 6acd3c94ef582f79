"""Load on a stub server that streams: what is sent, what is measured, and what the command line shows of it."""

import asyncio
import csv
import importlib.util
import itertools
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from loadtest_stub import Plan, StubServer

from loadtest import prompts
from loadtest.__main__ import main
from loadtest.client import Answer, Client
from loadtest.closed_loop import Closed, measure_closed
from loadtest.locust_run import LocustRun, run_locust
from loadtest.measure import Result, Traffic
from loadtest.open_loop import Step, measure_step, run_step
from loadtest.slo import TokenSlo
from loadtest.stream_client import StreamConnection
from loadtest.workloads import Workload, WorkloadError, build_bodies, find_workload, load_workload

CHAT = "/v1/chat/completions"
SLO = TokenSlo(ttft_ms=400, itl_ms=100)
SLOW = Plan(ttft_s=0.7)
QUICK = Plan()


def drive(stub: StubServer, scenario: Callable[[Client, Traffic], Awaitable[object]], route: str = CHAT) -> None:
    async def run() -> None:
        async with stub.listen() as url:
            client = Client(url, route, StreamConnection)
            await scenario(client, Traffic("mine", [client.encode(b'{"model": "m"}')], 1))
            await client.abort()

    asyncio.run(run())


def close(stub: StubServer, *, num_requests: int, connections: int = 1) -> Result:
    results: list[Result] = []

    async def scenario(client: Client, traffic: Traffic) -> None:
        plan = Closed(connections=connections, num_requests=num_requests, token_slo=SLO, timeout_s=5)
        results.append(await measure_closed(client, traffic, plan))

    drive(stub, scenario)
    return results[0]


def step(stub: StubServer, **options: float) -> Result:
    results: list[Result] = []

    async def scenario(client: Client, traffic: Traffic) -> None:
        plan = Step(duration_s=0.5, warmup_s=0, slo_ms=2000, token_slo=SLO, **options)
        results.append(await measure_step(client, traffic, plan))

    drive(stub, scenario)
    return results[0]


@pytest.mark.parametrize("route", [CHAT, "/v1/completions"])
def test_tokens_are_timed_when_the_server_writes_them(route: str) -> None:
    stub = StubServer(plan_of=lambda _: Plan(ttft_s=0.1, gap_s=0.1, pieces=(1, 1, 2, 1)))
    answers: list[Answer] = []

    async def scenario(client: Client, traffic: Traffic) -> None:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        client.send(next(traffic.turns), answered.set_result)
        answers.append(await answered)

    drive(stub, scenario, route)
    tokens, (written_s,) = answers[0].tokens, stub.written_s
    assert tokens is not None and not answers[0].error
    # The stub shares our event loop and its clock, however late its timers are.
    assert tokens.num_tokens == 5
    assert tokens.first_s == pytest.approx(written_s[0], abs=0.03)
    waits_s = [after - before for before, after in itertools.pairwise(written_s)]
    expected = [waits_s[0], waits_s[1] / 2, waits_s[1] / 2, waits_s[2]]
    assert tokens.gaps_s == pytest.approx(expected, abs=0.03)
    assert tokens.worst_gap_s == pytest.approx(max(waits_s), abs=0.03)


def test_a_closed_loop_measures_its_streams() -> None:
    plan = Plan(ttft_s=0.05, gap_s=0.02, pieces=(1,) * 4)
    stub = StubServer(plan_of=lambda _: plan)
    row = close(stub, num_requests=6, connections=3)
    assert stub.num_connections == 3 and row.requests == 6
    assert 49 <= row.ttft_p50_ms <= row.ttft_p99_ms
    assert 19 <= row.itl_p50_ms <= row.itl_p99_ms <= row.itl_max_ms
    assert row.tokens_per_s == pytest.approx(4 * row.requests_per_s)
    assert row.good_share == 1 and row.goodput_per_s == pytest.approx(row.requests_per_s)


def test_goodput_leaves_out_what_misses_a_limit() -> None:
    plans = [QUICK, SLOW, Plan(gap_s=0.2), QUICK]
    row = close(StubServer(plan_of=lambda number: plans[number % 4]), num_requests=8, connections=4)
    assert row.good_share == 0.5 and row.errors == 0
    assert row.goodput_per_s == pytest.approx(row.requests_per_s / 2)
    assert row.ttft_p99_ms >= 699 and row.itl_max_ms >= 199


def test_what_breaks_in_the_middle_is_an_error_and_no_good() -> None:
    plans = [QUICK, Plan(ending="error"), Plan(ending="reset"), QUICK]
    statuses = [200, 200, 200, 429]
    stub = StubServer(plan_of=lambda number: plans[number % 4], status_of=lambda number: statuses[number % 4])
    row = close(stub, num_requests=8)
    assert (row.requests, row.errors, row.rejected, row.retry_after) == (8, 4, 2, 2)
    assert "error event: server_error: 2" in row.failures and "HTTP 429: 2" in row.failures
    assert row.good_share == 0.25


def test_a_rate_is_kept_if_most_answers_are_good() -> None:
    row = step(StubServer(plan_of=lambda number: SLOW if number % 20 == 19 else QUICK), rate=100)
    assert row.meets_slo and 0.9 <= row.good_share < 1
    row = step(StubServer(plan_of=lambda number: SLOW if number % 5 == 0 else QUICK), rate=100)
    assert not row.meets_slo and not row.is_saturated and 0 < row.good_share < 0.9


def test_the_first_token_is_waited_for_from_when_the_request_was_due() -> None:
    stub = StubServer()
    late: list[float] = []

    async def scenario(client: Client, traffic: Traffic) -> None:
        send = client.send

        def send_late(request: bytes, done: Callable[[Answer], None]) -> None:
            asyncio.get_running_loop().call_later(0.1, send, request, done)

        client.send = send_late  # type: ignore[method-assign]
        flight = await run_step(client, traffic.turns, Step(rate=50, duration_s=0.2, warmup_s=0))
        late.extend(sample.ttft_ms for sample in flight.samples)

    drive(stub, scenario)
    assert late and min(late) >= 99


def read_workload(name: str) -> Workload:
    return load_workload(find_workload(name))


def test_bodies_ask_for_streams_of_the_lengths_drawn() -> None:
    chat = [json.loads(body) for body in build_bodies(read_workload("chat"), "mini")[:2000]]
    assert [message["role"] for message in chat[0]["messages"]] == ["user"]
    assert chat[0]["stream"] and chat[0]["stream_options"] == {"include_usage": True} and chat[0]["ignore_eos"]
    lengths = [body["max_tokens"] for body in chat]
    assert min(lengths) == 8 and max(lengths) == 128 and len(set(lengths)) > 50
    assert len({body["messages"][0]["content"] for body in chat}) == len(chat)
    story = json.loads(build_bodies(read_workload("stories"), "mini")[0])
    assert story["model"] == "mini" and isinstance(story["prompt"], str) and "messages" not in story


@pytest.mark.parametrize(
    ("name", "lines"), [("mine.txt", "one\n\ntwo\n"), ("mine.jsonl", '{"text": "one"}\n{"text": "two"}')]
)
def test_prompts_may_come_from_a_file(tmp_path: Path, name: str, lines: str) -> None:
    (tmp_path / name).write_text(lines + "\n" + json.dumps({"text": "long" * 1000}))
    workload = load_workload(find_workload("stories"), prompts.find_prompts(str(tmp_path / name)))
    assert {json.loads(body)["prompt"] for body in build_bodies(workload, "m")} == {"one", "two"}


def test_prompts_that_are_all_too_long_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x" * 400)
    with pytest.raises(WorkloadError, match="longer than max_prompt_chars, 300"):
        build_bodies(load_workload(find_workload("stories"), tmp_path / "mine.txt"), "m")


def test_prompts_that_cannot_be_fetched_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Path:
        raise prompts.NotAvailable("pip cannot fetch it")

    monkeypatch.setattr(prompts, "find_sharegpt", fail)
    assert run_main(monkeypatch, "--workload", "chat", "--prompts", "sharegpt") == 1
    assert "no prompts of sharegpt: pip cannot fetch it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "chat", "--slo-ms", "200"], "here give --slo"),
        (["--workload", "lognormal", "--slo", "ttft=1s,itl=1s"], "here give --slo-ms"),
    ],
)
def test_each_kind_of_workload_has_its_own_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_main(monkeypatch, *arguments) == 1
    assert message in capsys.readouterr().err


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["loadtest", *arguments])
    return main()


def test_a_sweep_of_streams_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = StubServer(plan_of=lambda _: Plan(ttft_s=0.02, gap_s=0.005))
    options = ["--short", "--duration", "0.2", "--warmup", "0", "--rate", "40", "--out", "results", "--mode", "sweep"]
    (tmp_path / "mine.txt").write_text("Hello\nGood morning\n")
    monkeypatch.chdir(tmp_path)

    async def run() -> int:
        async with stub.listen() as url:
            where = ["--url", url, "--workload", "chat", "--prompts", "mine.txt", "--slo", "ttft=2s,itl=1s"]
            return await asyncio.to_thread(run_main, monkeypatch, *where, *options)

    assert asyncio.run(run()) == 0
    shown = capsys.readouterr().out
    assert "TTFT p50" in shown and "90% with ttft=2000ms,itl=1000ms" in shown
    out = tmp_path / "results"
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert all(float(row["ttft_p50_ms"]) >= 19 and float(row["itl_p50_ms"]) >= 4 for row in rows)
    assert rows[0]["good_share"] == "1.0"
    described = json.loads((out / "results.json").read_text())
    assert described["slo"] == {"ttft_ms": 2000, "itl_ms": 1000, "min_good_share": 0.9}
    assert described["workload"]["generation"]["route"] == CHAT
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert {body["messages"][0]["content"] for body in stub.bodies} == {"Hello", "Good morning"}  # type: ignore[index]


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is not installed (extra `loadtest`)")
def test_locust_has_entries_for_tokens(tmp_path: Path) -> None:
    plans = [Plan(ttft_s=0.05, gap_s=0.02, pieces=(1,) * 4)] * 8 + [Plan(ending="error"), Plan(ending="reset")]
    statuses = [200] * 5 + [429] + [200] * 4
    stub = StubServer(plan_of=lambda number: plans[number % 10], status_of=lambda number: statuses[number % 10])
    (tmp_path / "mine.txt").write_text("Hello\n")

    async def run() -> Result:
        async with stub.listen() as url:
            workload, texts = find_workload("stories"), tmp_path / "mine.txt"
            plan = LocustRun(url=url, workload=workload, prompts=texts, model="m", out=tmp_path, users=4, duration_s=4)
            return await asyncio.to_thread(run_locust, plan)

    row = asyncio.run(run())
    assert {body["prompt"] for body in stub.bodies} == {"Hello"}
    assert row.rejected > 0 and row.errors > 0 and "error event: server_error" in row.failures
    assert row.ttft_p50_ms >= 49 and row.p50_ms >= 109 and row.itl_max_ms >= row.itl_p50_ms >= 19
    assert row.tokens_per_s == pytest.approx(4 * row.requests_per_s, rel=0.3)
    log = (tmp_path / "locust.log").read_text()
    assert "TTFT" in log and "ITL" in log
