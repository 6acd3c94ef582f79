"""The benchmarks of generation, less the engines: what is asked, how it is batched, counted and reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.generation.catalogue import PEERS, REFERENCE, list_batch_sizes
from bench.generation.chunked import find_pauses
from bench.generation.experts import VOCAB_SIZE
from bench.generation.experts import sample_tasks as sample_expert_tasks
from bench.generation.kv_memory import COUNTS, Samples
from bench.generation.kv_memory import build_table as build_memory_table
from bench.generation.measuring import GenerationMeasurement, GenerationRun, count_equal, measure_agreement
from bench.generation.ours import Reply
from bench.generation.reporting import build_table
from bench.generation.session import GenerationSession, Task, load_lists, load_tasks, save_lists, save_tasks, split
from bench.generation.speculative import Runs
from bench.generation.speculative import build_table as build_speculative_table
from bench.generation.workload import MODELS, Lengths, count_requests
from bench.peers.measuring import Cell
from bench.peers.processes import WorkerError
from bench.peers.reporting import COLOURS, plot

TASKS = [Task([7, 8, 9], 2), Task([1], 3), Task([5] * 40, 1)]


def count_up(tasks: Sequence[Task], batch_size: int) -> list[list[int]]:
    """A model that goes on with the next numbers."""
    return [[task.input_ids[-1] + 1 + step for step in range(task.num_tokens)] for task in tasks]


class FakeWorker:
    """A worker in this process; from the answer to request `dies_at` on it is dead."""

    def __init__(self, *, shift: int = 0, dies_at: int = 1000) -> None:
        self.session = GenerationSession(lambda *_: lambda *arguments: self.generate(*arguments))
        self.session.answer({"op": "load", "model": "", "converted": "", "options": {}, "threads": 1})
        self.shift, self.dies_at, self.batch_sizes = shift, dies_at, []

    def generate(self, tasks: Sequence[Task], batch_size: int) -> list[list[int]]:
        self.batch_sizes.append(batch_size)
        return [[token + self.shift for token in answer] for answer in count_up(tasks, batch_size)]

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        if len(self.batch_sizes) >= self.dies_at:
            raise WorkerError("it died")
        return self.session.answer({"op": op, **arguments})


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    save_tasks(tmp_path / "tasks.npz", TASKS)
    return tmp_path / "tasks.npz"


def test_tasks_and_answers_survive_their_files(workload: Path, tmp_path: Path) -> None:
    assert load_tasks(workload) == TASKS
    save_lists(tmp_path / "answers.npz", [[1, 2], [3], []])
    assert load_lists(tmp_path / "answers.npz") == [[1, 2], [3], []]


def test_lengths_are_the_same_every_time_and_keep_their_bounds() -> None:
    lengths = Lengths(50, 8, 200)
    drawn = lengths.sample(1000, np.random.default_rng(0))
    assert (drawn == lengths.sample(1000, np.random.default_rng(0))).all()
    assert (drawn.min(), drawn.max()) == (8, 200) and 45 <= np.median(drawn) <= 55


def test_prompts_and_answers_fit_the_model() -> None:
    assert MODELS["stories15m"].max_total_tokens <= 256
    assert [count_requests(concurrency) for concurrency in (1, 8, 32)] == [4, 16, 64]


@pytest.mark.parametrize(
    ("size", "sizes"), [(1, [1] * 7), (3, [2, 2, 3]), (4, [3, 4]), (6, [3, 4]), (7, [7]), (9, [7])]
)
def test_groups_are_even(size: int, sizes: list[int]) -> None:
    groups = list(split(list(range(7)), size))
    assert [place for group in groups for place in group] == list(range(7))
    assert [len(group) for group in groups] == sizes


def test_batch_sizes_are_searched_only_where_engines_pad() -> None:
    assert list_batch_sizes("Padless int8", 8) == [8]
    assert list_batch_sizes("Hugging Face continuous", 8) == [8]
    assert list_batch_sizes(REFERENCE, 8) == [1]
    assert list_batch_sizes("Hugging Face padded", 8) == [1, 4, 8]
    assert list_batch_sizes("CTranslate2 int8", 6) == [1, 4, 6]
    assert list_batch_sizes("CTranslate2 int8", 1) == [1]


def test_every_variant_has_a_colour_and_a_worker() -> None:
    for peer in PEERS.values():
        assert len(COLOURS[peer.name]) >= len(peer.variants)
        assert (peer.folder / peer.worker).is_file()


def test_answers_of_another_length_are_refused(workload: Path) -> None:
    session = GenerationSession(lambda *_: lambda tasks, batch_size: [[1]] * len(tasks))
    session.answer({"op": "load", "model": "", "converted": "", "options": {}, "threads": 1})
    assert session.answer({"op": "prepare", "workload": str(workload)}) == {"num_tokens": 6}
    with pytest.raises(ValueError, match=r"answers have \[1, 1, 1\] tokens and should have \[2, 3, 1\]"):
        session.answer({"op": "run", "batch_size": 1})


def test_engines_run_in_turn_and_are_compared_with_the_reference(workload: Path) -> None:
    workers = {
        REFERENCE: FakeWorker(),
        "Padless fp32": FakeWorker(),
        "Padless int8": FakeWorker(shift=1),
        "CTranslate2 int8": FakeWorker(dies_at=1),
    }
    results = GenerationRun(Cell("m", 2, "8 concurrent"), workers).measure(workload, rounds=2)
    assert [result.agreement for result in results] == [1.0, 1.0, 0.0, None]
    assert [len(result.seconds) for result in results] == [2, 2, 2, 0]
    assert results[-1].failure == "it died" and results[0].num_tokens == 6
    assert workers["Padless fp32"].batch_sizes[1:] == [8, 8] and workers[REFERENCE].batch_sizes[1:] == [1, 1]


def test_agreement_ends_at_the_first_difference() -> None:
    assert count_equal([1, 2, 9, 4], [1, 2, 3, 4]) == 2
    assert measure_agreement([[1, 2, 9, 4], [5, 6]], [[1, 2, 3, 4], [5, 6]]) == pytest.approx(4 / 6)


def make_measurement(engine: str, seconds: list[float]) -> GenerationMeasurement:
    return GenerationMeasurement(*("stories15m", 2, "8 concurrent", engine, "", 300, 8, seconds, 1.9), agreement=0.95)


MEASUREMENTS = [
    GenerationMeasurement("stories15m", 2, "all", "llama.cpp f32", "not installed: no compiler"),
    make_measurement("Hugging Face padded", [6.0, 6.0, 6.0]),
    make_measurement("Padless fp32", [2.0, 3.0, 2.0]),
    make_measurement("Padless int8", [1.0, 1.0, 1.0]),
]


def test_the_table_compares_with_each_of_ours(tmp_path: Path) -> None:
    table = build_table(MEASUREMENTS)
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    assert [row["engine"] for row in rows] == ["Padless int8", "Padless fp32", "Hugging Face padded", "llama.cpp f32"]
    assert rows[2]["times Padless fp32 (10-90 %)"] == "3.00 (2.00-3.00)"
    assert rows[2]["times Padless int8 (10-90 %)"] == "6.00 (6.00-6.00)"
    assert (rows[2]["tokens/s"], rows[2]["as reference"]) == ("50", "95%")
    assert rows[3]["failure"] == "not installed: no compiler"
    plot(MEASUREMENTS, tmp_path / "generation.png")
    assert (tmp_path / "generation.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_only_pauses_beside_the_newcomer_count_for_it() -> None:
    reader = Reply(0.0, [1] * 6, [1.0, 1.1, 1.2, 2.0, 2.3, 9.0])
    pauses = find_pauses([reader], Reply(1.25, [1], [2.2]))
    assert pauses.usual_s == pytest.approx(0.1)
    assert pauses.worst_s == pytest.approx(0.8)
    assert pauses.first_s == pytest.approx(0.95)


def test_memory_is_told_per_live_token() -> None:
    samples = Samples(dict(zip(COUNTS, ([10, 30], [16, 32], [40, 40], [200, 200]), strict=True)))
    table = build_memory_table({"own prompts": samples}, token_bytes=1024.0)
    assert [row[1:4] for row in table[1:]] == [
        ["paged", "1.2", "1.20"],
        ["contiguous, own length", "2.0", "2.00"],
        ["contiguous, maximum length", "10.0", "10.00"],
    ]


def test_speed_with_drafts_is_that_of_the_same_answers() -> None:
    plain = Runs([2.0, 2.0], [[1, 2], [3]])
    drafted = Runs([1.0, 1.0], [[1, 2], [4]], num_drafted=8, num_accepted=6)
    table = build_speculative_table({"repetitive": {"none": plain, "4": drafted}})
    assert table[1][1:] == ["none", "1.5", "1.00 (1.00-1.00)", "-", "2 of 2"]
    assert table[2][1:] == ["4", "3.0", "2.00 (2.00-2.00)", "75% of 8", "1 of 2"]


def test_both_models_are_asked_the_same() -> None:
    tasks = sample_expert_tasks(50)
    assert tasks == sample_expert_tasks(50)
    assert all(0 <= token < VOCAB_SIZE for task in tasks for token in task.input_ids)
