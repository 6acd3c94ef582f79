"""The comparisons of tasks, less the peers: what is asked, what is put beside what, what is reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.minilm import DIRECTORY
from bench.peers.protocol import Embed, Rows, Sequences, Session, drop_padding, pad, save_workload
from bench.tasks.measuring import TaskMeasurement, correlate
from bench.tasks.oip import HEADER, build_binary, build_json, sample_inputs
from bench.tasks.reporting import HEADING, build_table
from bench.tasks.session import MemorySession
from bench.tasks.traffic import NUM_QUERY_TOKENS, SEP, sample_pairs, sample_questions

SEQUENCES = [np.arange(1000, 1000 + length, dtype=np.int32) for length in (5, 2, 9)]


def test_pairs_share_the_query_and_fit_the_model() -> None:
    pairs = sample_pairs(200)
    assert {tuple(pair[: NUM_QUERY_TOKENS + 2]) for pair in pairs} == {tuple(pairs[0][: NUM_QUERY_TOKENS + 2])}
    assert all(np.count_nonzero(pair == SEP) == 2 and pair[-1] == SEP for pair in pairs)
    lengths = [len(pair) for pair in pairs]
    assert max(lengths) <= 256 and 40 < np.median(lengths) < 65


def test_words_are_as_many_as_tokens() -> None:
    ((query, passages),) = sample_questions(DIRECTORY, 1, 50)
    assert len(query.split()) == NUM_QUERY_TOKENS and 30 < np.median([len(text.split()) for text in passages]) < 55


def test_correlation_is_of_what_differs_from_row_to_row() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    assert correlate(rows, rows) == pytest.approx(1)
    assert correlate(rows + np.array([100, 0, -5], np.float32), rows) == pytest.approx(1, abs=1e-4)
    assert correlate(-rows, rows) == pytest.approx(-1)
    assert abs(correlate(rows[::-1], rows)) < 0.5
    with pytest.raises(ValueError, match=r"\(39, 3\) cannot be compared with \(40, 3\)"):
        correlate(rows[1:], rows)


def test_rows_of_padding_are_dropped() -> None:
    _, mask = pad(SEQUENCES)
    rows = np.arange(3 * 9 * 2, dtype=np.float32).reshape(3, 9, 2)
    assert drop_padding(rows, mask).tolist() == [*rows[0, :5].tolist(), *rows[1, :2].tolist(), *rows[2].tolist()]
    assert drop_padding(rows[:, 0], mask) is not None and drop_padding(rows[:, 0], mask).shape == (3, 2)


def load_tokens(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    def embed(batches: list[Sequences]) -> list[Rows]:
        return [np.concatenate(batch)[:, None].astype(np.float32) for batch in batches]

    return embed


def prepare(session: Session, folder: Path) -> None:
    save_workload(folder / "workload.npz", SEQUENCES)
    session.answer({"op": "load", "model": "m", "converted": "c", "options": {}, "threads": 1})
    session.answer({"op": "prepare", "workload": str(folder / "workload.npz")})


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_of_tokens_stand_shortest_sequence_first(batch_size: int, tmp_path: Path) -> None:
    session = Session(load_tokens)
    prepare(session, tmp_path)
    session.answer({"op": "run", "batch_size": batch_size})
    session.answer({"op": "embeddings", "path": str(tmp_path / "rows.npy")})
    assert np.load(tmp_path / "rows.npy")[:, 0].tolist() == [*SEQUENCES[1], *SEQUENCES[0], *SEQUENCES[2]]


def test_the_peak_is_what_a_run_takes_besides(tmp_path: Path) -> None:
    def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
        held = np.ones(40_000_000, np.int8)

        def embed(batches: list[Sequences]) -> list[Rows]:
            taken = np.ones(4_000_000 * sum(len(ids) for batch in batches for ids in batch), np.int8)
            return [np.full((len(batch), 1), taken[0] + held[0], np.float32) for batch in batches]

        return embed

    session = MemorySession(load)
    prepare(session, tmp_path)
    peak_bytes = session.answer({"op": "peak", "batch_size": 8})["peak_bytes"]
    assert peak_bytes == pytest.approx(64_000_000, rel=0.3), "16 tokens, and nothing of what was there before"


def test_both_ways_ask_the_same() -> None:
    inputs = sample_inputs()
    asked = {tensor["name"]: tensor for tensor in json.loads(build_json(inputs).body)["inputs"]}
    binary = build_binary(inputs, "INT32")
    size = int(binary.headers[HEADER])
    head, offset = json.loads(binary.body[:size]), size
    for tensor in head["inputs"]:
        num_bytes = tensor["parameters"]["binary_data_size"]
        rows = np.frombuffer(binary.body[offset : offset + num_bytes], "<i4")
        assert rows.tolist() == asked[tensor["name"]]["data"] and tensor["shape"] == asked[tensor["name"]]["shape"]
        offset += num_bytes
    assert offset == len(binary.body) and 0.7 < inputs["attention_mask"].mean() < 0.8


def test_the_table_compares_with_our_int8() -> None:
    measurements = [
        TaskMeasurement("rerank", 1, "100", "Peer int8", "", 1000, 4, [3.0, 4.0, 3.0], correlation=0.98),
        TaskMeasurement("rerank", 1, "100", "Padless int8", "", 1000, 8, [1.0, 2.0, 1.0], peak_bytes=2_000_000),
        TaskMeasurement("rerank", 1, "100", "Dead int8", "it died"),
    ]
    rows = [dict(zip(HEADING, row, strict=True)) for row in build_table(measurements)[1:]]
    assert [row["engine"] for row in rows] == ["Padless int8", "Peer int8", "Dead int8"]
    assert rows[1]["times Padless int8 (10-90 %)"] == "3.00 (2.00-3.00)" and rows[1]["correlation"] == "0.9800"
    assert (rows[0]["peak MB"], rows[2]["failure"]) == ("2", "it died")
