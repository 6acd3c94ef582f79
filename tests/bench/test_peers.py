"""The comparison with peers, less the peers: what is said to workers, how environments are named, what is reported."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.peers import environments
from bench.peers.__main__ import count_sequences
from bench.peers.catalogue import PADLESS, ZENTORCH, list_engines
from bench.peers.environments import INSTALLED, InstallError, hash_pins, prepare_environment
from bench.peers.fleet import Fleet
from bench.peers.measuring import Cell, CellRun, Measurement, find_batch_size, list_batch_sizes
from bench.peers.processes import WorkerError, WorkerProcess, build_environment, convert
from bench.peers.protocol import load_workload, pad, pool, save_workload
from bench.peers.reporting import HEADING, build_table, plot

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "peers_worker.py"
SEQUENCES = [np.arange(1000, 1000 + length, dtype=np.int32) for length in (5, 2, 9, 2, 7)]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    environment = build_environment(1, tmp_path, {"PYTHONPATH": str(ROOT)})
    process = WorkerProcess(Path(sys.executable), WORKER, environment, tmp_path / "worker.log")
    yield process
    process.close()


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    save_workload(tmp_path / "workload.npz", SEQUENCES)
    return tmp_path / "workload.npz"


def load(worker: WorkerProcess, **options: str) -> None:
    worker.ask("load", model="model", converted="converted", options=options, threads=1)


def test_a_worker_answers_in_the_callers_order(worker: WorkerProcess, workload: Path, tmp_path: Path) -> None:
    load(worker)
    assert worker.ask("prepare", workload=str(workload)) == {"num_tokens": 25}
    for batch_size in (1, 2, 8):
        answer = worker.ask("run", batch_size=batch_size)
        assert set(answer) == {"seconds", "cpu_seconds", "settle_seconds"} and answer["seconds"] > 0
        worker.ask("embeddings", path=str(tmp_path / "rows.npy"))
        angles = [np.stack([np.cos(ids / 30_000), np.sin(ids / 30_000)], axis=-1).mean(0) for ids in SEQUENCES]
        expected = np.stack([angle / np.linalg.norm(angle) for angle in angles])
        np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), expected, atol=1e-6)


def test_a_worker_that_fails_says_why_and_goes_on(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="ValueError: no such precision"):
        load(worker, failure="no such\nprecision")
    load(worker)


def test_a_worker_that_dies_leaves_the_cell_with_its_last_words(worker: WorkerProcess, tmp_path: Path) -> None:
    load(worker)
    save_workload(tmp_path / "many.npz", [SEQUENCES[0]] * 64)
    worker.ask("prepare", workload=str(tmp_path / "many.npz"))
    with pytest.raises(WorkerError, match="ended with 1: out of memory"):
        worker.ask("run", batch_size=64)
    (result,) = CellRun(Cell("m", 1, "w"), {"dead": worker}).measure(tmp_path / "many.npz", rounds=3)
    assert "out of memory" in result.failure and not result.seconds


def test_a_cell_has_as_many_seconds_as_rounds(worker: WorkerProcess, workload: Path) -> None:
    load(worker)
    (result,) = CellRun(Cell("m", 1, "w"), {"Hugging Face fp32": worker}).measure(workload, rounds=2)
    assert not result.failure and len(result.seconds) == 2
    assert result.num_tokens == 25 and result.cosine == pytest.approx(1)


def test_a_model_is_converted_once(tmp_path: Path) -> None:
    extra = {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        convert(Path(sys.executable), WORKER, Path("model"), tmp_path / "out", tmp_path, extra)
    assert (tmp_path / "out" / "converted").read_text() == "model"
    with pytest.raises(WorkerError, match="conversion failed: it is broken"):
        convert(Path(sys.executable), WORKER, Path("broken"), tmp_path / "broken", tmp_path, extra)
    assert not (tmp_path / "broken").exists()


def test_padding_adds_nothing_to_the_mean() -> None:
    input_ids, mask = pad(SEQUENCES)
    assert input_ids.shape == mask.shape == (5, 9)
    hidden_states = np.random.default_rng(0).normal(size=(5, 9, 4)).astype(np.float32)
    hidden_states[1, 2:] = 1e6
    mean = hidden_states[1, :2].mean(0)
    np.testing.assert_allclose(pool(hidden_states, mask)[1], mean / np.linalg.norm(mean), rtol=1e-5)


def test_a_workload_survives_its_file(workload: Path) -> None:
    for ours, theirs in zip(SEQUENCES, load_workload(workload), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_pins_name_the_environment() -> None:
    assert hash_pins(["a==1", "b==2"]) == hash_pins(["b==2", "a==1"])
    assert len({hash_pins(pins) for pins in (["a==1"], ["a==2"], ["a==1", "b==2"], ["a==1\nb==2"], [])}) == 4


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "environments" / hash_pins(["a==1"])
    folder.mkdir(parents=True)
    (folder / "left over").touch()

    def fail(command: list[str], title: str) -> None:
        raise InstallError("no network")

    monkeypatch.setattr(environments, "run_shown", fail)
    with pytest.raises(InstallError, match="no network"):
        prepare_environment(["a==1"], tmp_path)
    assert not (folder / "left over").exists()
    folder.mkdir()
    (folder / INSTALLED).touch()
    assert prepare_environment(["a==1"], tmp_path) == folder / "bin" / "python"


def test_what_fails_to_install_is_told_in_one_line() -> None:
    script = "print('Collecting a'); print('ERROR: no a'); print('hint'); raise SystemExit(1)"
    with pytest.raises(InstallError, match=r"^ERROR: no a$"):
        environments.run_shown([sys.executable, "-c", script], "installing")


@pytest.mark.parametrize("best", [1, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("fastest_s", [0.1, 3.0])
def test_the_best_batch_size_is_found(best: int, fastest_s: float) -> None:
    asked: list[int] = []

    def time_run(size: int) -> float:
        asked.append(size)
        cold_s = 1.0 if asked.count(size) == 1 and fastest_s < 1 else 0.0
        return fastest_s + cold_s + 0.1 * abs(np.log2(size / best))

    assert find_batch_size(time_run) == best
    assert fastest_s < 1 or len(asked) == len(set(asked)), "slow runs are timed once"


def make_measurement(engine: str, seconds: list[float], workload: str = "lognormal") -> Measurement:
    return Measurement("minilm", 1, workload, engine, "", 1000, 8, seconds, 1.0, 0.02, 0.999)


MEASUREMENTS = [
    Measurement("minilm", 1, "all", "OpenVINO bf16, latency", "no instructions"),
    make_measurement("Padless fp32", [2.0, 4.0, 2.0]),
    make_measurement("Padless int8", [1.0, 2.0, 1.0]),
    make_measurement("Peer fp32", [2.0, 4.0, 3.0]),
    Measurement("minilm", 1, "lognormal", "Peer int8", "it died"),
    make_measurement("Padless fp32", [1.0, 1.0, 1.0], "constant-32"),
    Measurement("minilm", 2, "all", "OpenVINO bf16, latency", "no instructions"),
]


def test_the_table_compares_with_the_best_of_ours_in_each_cell() -> None:
    table = build_table(MEASUREMENTS)
    assert {len(row) for row in table} == {len(HEADING)}
    rows = [dict(zip(HEADING, row, strict=True)) for row in table[1:]]
    assert [row["engine"] for row in rows[:4]] == ["Padless int8", "Padless fp32", "Peer fp32", "Padless fp32"]
    assert rows[2]["times padless best (10-90 %)"] == "2.00 (2.00-3.00)"
    assert (rows[2]["median ms"], rows[2]["tokens/s"], rows[2]["lowest cosine"]) == ("3000", "333", "0.9990")
    assert rows[3]["times padless best (10-90 %)"].startswith("1.00")


def test_failures_of_a_kind_share_a_row() -> None:
    rows = [dict(zip(HEADING, row, strict=True)) for row in build_table(MEASUREMENTS)[1:]]
    assert [(row["engine"], row["threads"], row["failure"]) for row in rows[4:]] == [
        ("OpenVINO bf16, latency", "all", "no instructions"),
        ("Peer int8", "1", "it died"),
    ]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(MEASUREMENTS, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    plot(MEASUREMENTS[:1], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_batch_sizes_that_hold_all_sequences_count_once() -> None:
    assert [list(list_batch_sizes(count)) for count in (1, 6, 16, 64, 99)] == [
        [1],
        [1, 4, 8],
        [1, 4, 8, 16],
        [1, 4, 8, 16, 32, 64],
        [1, 4, 8, 16, 32, 64],
    ]


def test_only_the_engines_that_are_named_are_installed_and_loaded(tmp_path: Path) -> None:
    peers = {"padless": PADLESS, "zentorch": ZENTORCH}
    assert list_engines(peers) == ["Padless fp32", "Padless bf16", "Padless int8", "zentorch fp32", "zentorch bf16"]
    fleet = Fleet(peers, tmp_path, ["Padless int8"])
    assert list_engines(fleet.peers) == ["Padless int8"] and list(fleet.pythons) == ["padless"]


def test_a_number_of_tokens_makes_as_many_sequences_as_fit() -> None:
    given = argparse.Namespace(tokens=8192, sequences=4)
    assert [count_sequences(f"constant-{length}", given) for length in (128, 8192)] == [64, 1]
    assert count_sequences("documents", given) == 4
    assert count_sequences("constant-128", argparse.Namespace(tokens=None, sequences=4)) == 4
