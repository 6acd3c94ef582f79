"""The benchmark of encoder-decoders, less the engines: what is asked, how it is searched for, counted and reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.generation.reporting import build_table
from bench.generation.session import Task
from bench.peers.measuring import Cell
from bench.peers.reporting import COLOURS, plot
from bench.seq2seq.catalogue import PEERS, REFERENCE, list_batch_sizes
from bench.seq2seq.directories import END, PAD
from bench.seq2seq.features import NUM_TOKENS, make_features, sample_clips
from bench.seq2seq.measuring import Seq2SeqMeasurement, Seq2SeqRun, name_search
from bench.seq2seq.session import Search, Seq2SeqSession, save_workload
from bench.seq2seq.speech import HEARING, SpeechMeasurement
from bench.seq2seq.workload import STEP, count_sources, sample_random

TASKS = [Task([7, 8, 9], 2), Task([1], 0)]
SEARCH = Search(4, 16)


class FakeWorker:
    """A worker in this process, whose answers are the numbers behind the source's last. It remembers its searches."""

    def __init__(self) -> None:
        self.session = Seq2SeqSession(lambda *_: self.translate)
        self.session.answer({"op": "load", "model": "", "converted": "", "options": {}, "threads": 1})
        self.searches: list[Search] = []

    def translate(self, tasks: Sequence[Task], batch_size: int, search: Search) -> list[list[int]]:
        self.searches.append(search)
        return [[task.input_ids[-1] + 1 + step for step in range(task.num_tokens or 3)] for task in tasks]

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        return self.session.answer({"op": op, **arguments})


def test_workers_search_as_the_workload_says_and_answers_are_counted(tmp_path: Path) -> None:
    save_workload(tmp_path / "tasks.npz", TASKS, SEARCH)
    workers = {REFERENCE: FakeWorker(), "Padless fp32": FakeWorker()}
    run = Seq2SeqRun(Cell("m", 2, name_search(SEARCH)), workers)
    results = run.measure(tmp_path / "tasks.npz", rounds=2)
    assert set(workers[REFERENCE].searches) == {SEARCH}
    assert [(result.num_answers, result.agreement) for result in results] == [(2, 1.0), (2, 1.0)]


def test_an_answer_that_is_to_have_a_length_must_have_it(tmp_path: Path) -> None:
    save_workload(tmp_path / "tasks.npz", TASKS, SEARCH)
    session = Seq2SeqSession(lambda *_: lambda tasks, *_: [[1]] * len(tasks))
    session.answer({"op": "load", "model": "", "converted": "", "options": {}, "threads": 1})
    session.answer({"op": "prepare", "workload": str(tmp_path / "tasks.npz")})
    with pytest.raises(ValueError, match=r"answers have \[1, 1\] tokens and should have \[2, 0\]"):
        session.answer({"op": "run", "batch_size": 1})


def test_sources_are_the_same_every_time_and_answers_nearly_as_long() -> None:
    tasks, again = (sample_random(Path(), 50, np.random.default_rng(0)) for _ in range(2))
    assert tasks == again
    for source, num_tokens in tasks:
        assert source[-1] == END and PAD not in source and END not in source[:-1]
        assert num_tokens % STEP == 0 and len(source) <= num_tokens < len(source) + STEP
    assert [count_sources(concurrency, 2) for concurrency in (1, 16, 64)] == [8, 32, 128]


def test_batch_sizes_are_searched_only_where_engines_pad() -> None:
    assert list_batch_sizes("Padless int8", 16) == [16]
    assert list_batch_sizes(REFERENCE, 16) == [1, 4, 8, 16]
    assert list_batch_sizes("CTranslate2 int8", 1) == [1]


def test_every_variant_has_a_colour_and_a_worker() -> None:
    for peer in PEERS.values():
        assert len(COLOURS[peer.name]) >= len(peer.variants)
        assert (peer.folder / peer.worker).is_file()


def test_rates_are_of_answers(tmp_path: Path) -> None:
    result = Seq2SeqMeasurement("m", 2, name_search(SEARCH), "Padless int8", seconds=[4.0], num_answers=50)
    rows = [dict(zip(table[0], table[1], strict=True)) for table in (build_table([result]),)]
    assert rows[0]["answers/s"] == "12.5" and rows[0]["requests"] == "16 concurrent, beam 4"
    plot([result], tmp_path / "rates.png")
    assert (tmp_path / "rates.png").exists()


def test_speech_is_told_in_seconds_heard() -> None:
    result = SpeechMeasurement("m", 2, name_search(Search(1, 8)), "Padless int8", seconds=[4.0], num_answers=8)
    assert result.rate() == 60.0
    for peer in HEARING.values():
        assert (peer.folder / peer.worker).is_file()


def test_clips_are_the_same_every_time_and_unlike_one_another() -> None:
    first, second = sample_clips(2)
    assert first.num_tokens == NUM_TOKENS
    assert (make_features(first) == make_features(first)).all()
    assert (make_features(first) != make_features(second)).any()
