"""What is written and shown of results, and the command line from start to end."""

import asyncio
import csv
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import loadtest_stub
import pytest

from loadtest.__main__ import main
from loadtest.locust_run import LocustRun, run_locust
from loadtest.measure import LoopLag, Result, Traffic, Window, measure
from loadtest.plot import write_plot
from loadtest.report import describe_run, format_line, format_notes, format_table, write_csv, write_json
from loadtest.server_process import ServerError, serve
from loadtest.slo import TokenSlo
from loadtest.workloads import find_workload

ROOT = Path(__file__).parent.parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
EMPTY = measure([], Traffic("mine", [], 1), Window(0, 1), mode="closed", slo_ms=100, lag=LoopLag())


def make_step(rate: float, p99_ms: float, *, is_saturated: bool = False, meets_slo: bool = False) -> Result:
    """A made-up row of a sweep."""
    row = replace(EMPTY, mode="sweep", offered_per_s=rate, requests_per_s=rate, texts_per_s=rate, requests=100)
    times = replace(row, p50_ms=p99_ms / 4, p95_ms=p99_ms / 2, p99_ms=p99_ms, p999_ms=p99_ms)
    return replace(times, is_saturated=is_saturated, meets_slo=meets_slo)


RESULTS = [
    replace(EMPTY, connections=64, requests_per_s=200.0, p99_ms=350.0),
    make_step(100.0, 40.0, meets_slo=True),
    make_step(200.0, 900.0, is_saturated=True),
]


def test_the_csv_holds_every_field(tmp_path: Path) -> None:
    write_csv(RESULTS, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [field.name for field in fields(Result)]
    assert [row["mode"] for row in rows] == ["closed", "sweep", "sweep"]
    assert rows[0]["offered_per_s"] == "" and rows[1]["offered_per_s"] == "100.0"


@pytest.mark.parametrize("results", [RESULTS, [EMPTY]])
@pytest.mark.parametrize("token_slo", [None, TokenSlo(500, 100)])
def test_the_plot_is_a_picture(tmp_path: Path, results: list[Result], token_slo: TokenSlo | None) -> None:
    write_plot(results, tmp_path / "results.png", slo_ms=200, token_slo=token_slo, title="mine")
    assert (tmp_path / "results.png").read_bytes().startswith(PNG)


def test_the_table_is_aligned_and_marks_the_steps() -> None:
    lines = format_table(RESULTS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].endswith("met") and lines[3].endswith("saturated")
    assert "nan" not in format_table([EMPTY])
    assert format_line(RESULTS[1]) == "sweep   100.0/s offered: 100.0 req/s, p99 40.0 ms  met"


GENERATED = [
    replace(
        row,
        tokens_per_s=2000.0,
        good_share=share,
        goodput_per_s=90.0,
        ttft_p99_ms=321.0,
        itl_p99_ms=12.0,
        itl_max_ms=99.0,
    )
    for row, share in zip(RESULTS, (0.5, 0.93, 0.1), strict=True)
]


def test_generation_is_shown_by_its_tokens() -> None:
    lines = format_table(GENERATED).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "TTFT p50" in lines[0] and "max ms" in lines[0] and "texts/s" not in lines[0]
    assert "2000.0" in lines[1] and "0.93" in lines[2]
    assert format_line(GENERATED[1]) == (
        "sweep   100.0/s offered: 100.0 req/s, 2000 tokens/s, p99 of TTFT 321.0 ms, of ITL 12.0 ms, 93% good  met"
    )


def test_the_notes_of_generation_name_its_goodput() -> None:
    (best, *others) = format_notes(GENERATED, GENERATED[1], slo_ms=9000, token_slo=TokenSlo(500, 100))
    assert best.startswith(
        "highest rate with the SLO met: 100.0 req/s, 2000.0 tokens/s, goodput 90.0 req/s (93.0% good"
    )
    assert others == []
    (none,) = format_notes(GENERATED[2:], None, slo_ms=9000, token_slo=TokenSlo(500, 100))
    assert none == "no rate that was tried met the SLO of 90% with ttft=500ms,itl=100ms"
    slow = [replace(GENERATED[1], lag_p99_ms=11.0)]
    assert "client may be the limit" in format_notes(slow, slow[0], slo_ms=9000, token_slo=TokenSlo(500, 100))[1]


def test_the_notes_name_the_answer_the_failures_and_a_slow_client() -> None:
    busy = replace(RESULTS[2], failures="HTTP 500: 3", client_cpu=0.95)
    notes = "\n".join(format_notes([*RESULTS[:2], busy], RESULTS[1], slo_ms=200))
    assert "100.0 req/s" in notes and "HTTP 500: 3" in notes and "client may be the limit" in notes
    assert "no rate that was tried" in format_notes([busy], None, slo_ms=200)[0]
    assert format_notes([EMPTY], None, slo_ms=200) == []


def test_the_description_says_where_and_when(tmp_path: Path) -> None:
    described = describe_run(url="http://127.0.0.1:1", workload={"seed": 0}, info={"version": "1"}, command=["x"])
    write_json(described, tmp_path / "results.json")
    read = json.loads((tmp_path / "results.json").read_text())
    assert read == described
    assert read["cpu"] and read["date"] and read["server_info"] == {"version": "1"}


def write_server(folder: Path, *, body: str) -> None:
    """A package `server` that understands the two options the load test gives it."""
    (folder / "server").mkdir()
    (folder / "server" / "__init__.py").touch()
    (folder / "server" / "__main__.py").write_text(body)


STUB = f"""
import asyncio, sys
sys.path.insert(0, {os.fspath(Path(loadtest_stub.__file__).parent)!r})
from loadtest_stub import main
_, config, given, _, setting = sys.argv[0:5]
assert (config, given) == ("--config", "mine.yaml")
asyncio.run(main(int(setting.removeprefix("server.port=")), delay_s=0.01, concurrency=4))
"""


def run_loadtest(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "loadtest", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_a_server_is_started_swept_and_stopped(tmp_path: Path) -> None:
    write_server(tmp_path, body=STUB)
    options = ["--mode", "sweep", "--short", "--duration", "0.2", "--warmup", "0", "--rate", "150"]
    done = run_loadtest(tmp_path, "--serve", "mine.yaml", "--out", "results", "--workload", "short-words", *options)
    assert done.returncode == 0, done.stderr
    assert "model stub-model" in done.stdout and "p99.9 ms" in done.stdout
    out = tmp_path / "results"
    assert (out / "results.png").read_bytes().startswith(PNG)
    assert (out / "results.csv").read_text().count("\nsweep,short-words,") >= 2
    described = json.loads((out / "results.json").read_text())
    assert described["server_info"] == {"version": "stub"}
    assert "stopped by SIGTERM" in (out / "server.log").read_text()


def test_a_server_that_does_not_start_is_shown_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_server(tmp_path, body="raise SystemExit('no such model')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerError, match="no such model"), serve("mine.yaml", log=tmp_path / "server.log"):
        raise AssertionError("it must not get here")


def test_a_mistake_of_the_user_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["loadtest", "--workload", "unheard-of", "--mode", "closed"])
    assert main() == 1
    assert capsys.readouterr().err.startswith("loadtest: no workload 'unheard-of'")


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is not installed (extra `loadtest`)")
def test_locust_reports_what_the_server_answered(tmp_path: Path) -> None:
    stub = loadtest_stub.StubServer(delay_s=0.02, status_of=lambda number: 429 if number % 10 == 9 else 200)

    async def run() -> Result:
        async with stub.listen() as url:
            workload = find_workload("batch-32")
            plan = LocustRun(url=url, workload=workload, model="m", out=tmp_path, users=4, duration_s=4)
            return await asyncio.to_thread(run_locust, plan)

    row = asyncio.run(run())
    assert row.errors == 0 and row.rejected > 0 and row.requests_per_s > 0
    assert row.texts_per_s == pytest.approx(32 * row.requests_per_s)
    assert not math.isnan(row.p99_ms)
    assert isinstance(stub.bodies[0]["input"], list) and stub.bodies[0]["model"] == "m"
    assert "texts/s" in (tmp_path / "locust.log").read_text()
