"""The workload files: what they promise of their lengths, and how they name a mistake."""

import json
import statistics
from pathlib import Path

import pytest

from loadtest.words import WORDS
from loadtest.workloads import (
    FOLDER,
    Workload,
    WorkloadError,
    build_bodies,
    build_texts,
    find_workload,
    load_workload,
)


def read(name: str) -> Workload:
    return load_workload(find_workload(name))


def count_words(workload: Workload) -> list[int]:
    return [len(text.split()) for texts in build_texts(workload) for text in texts]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_gives_the_number_of_texts_it_says(path: Path) -> None:
    workload = load_workload(path)
    texts = build_texts(workload)
    assert len(texts) == workload.num_requests
    assert {len(batch) for batch in texts} == {workload.texts_per_request}


def test_constant_lengths_leave_room_for_the_special_tokens() -> None:
    assert set(count_words(read("constant-32"))) == {30}
    assert set(count_words(read("constant-128"))) == {126}


def test_lognormal_has_its_median_and_its_range() -> None:
    tokens = [length + 2 for length in count_words(read("lognormal"))]
    assert statistics.median(tokens) == pytest.approx(40, rel=0.1)
    assert min(tokens) >= 8 and max(tokens) <= 256
    assert statistics.mean(tokens) == pytest.approx(51, rel=0.1)  # the engine benchmark: 3,281 tokens in 64 texts


def test_long_tail_has_exactly_one_long_text_in_a_hundred() -> None:
    tokens = [length + 2 for length in count_words(read("long-tail"))]
    assert tokens.count(256) == len(tokens) // 100
    assert all(16 <= length <= 48 for length in tokens if length != 256)


def test_short_words_counts_words() -> None:
    assert {min(count_words(read("short-words"))), max(count_words(read("short-words")))} == {3, 50}


def test_the_seed_decides_the_texts() -> None:
    workload = read("lognormal")
    assert build_texts(workload) == build_texts(workload)
    assert build_texts(workload) != build_texts(workload.model_copy(update={"seed": 1}))


def test_words_are_plain_and_different() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isalpha() and word.islower() for word in WORDS)


def test_bodies_are_embedding_requests() -> None:
    single = json.loads(build_bodies(read("constant-32"), "mini")[0])
    assert single.keys() == {"model", "input", "encoding_format"}
    assert (single["model"], single["encoding_format"]) == ("mini", "base64")
    assert isinstance(single["input"], str)
    assert len(json.loads(build_bodies(read("batch-32"), "mini")[0])["input"]) == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "num_request: 3\nlengths: {kind: constant, length: 3}",
            "'num_request', did you mean 'num_requests'?",
        ),
        ("lengths: {kind: lognormal, medain: 3, sigma: 1, min: 1, max: 2}", "'medain', did you mean 'median'?"),
        ("lengths: {kind: uniform, min: 5, max: 2}", "min 5 is above max 2"),
        ("lengths: {kind: gaussian}", "lengths: "),
        ("lengths: {kind: mix, parts: [{share: 0.5, lengths: {kind: constant, length: 3}}]}", "sum to 0.5"),
        ("texts_per_request: 1", "either `lengths`"),
        ("lengths: {kind: constant, length: 0}", "greater than 0"),
        ("lengths: [", "not YAML"),
        ("just a string", "mine.yaml"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload(write(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WorkloadError, match=r"batch-32.*lognormal"):
        find_workload("log-normal")


def test_a_corpus_is_found_beside_the_file_and_repeated(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    workload = load_workload(write(tmp_path, "{corpus: texts.jsonl, num_requests: 3, texts_per_request: 2}"))
    texts = [text for batch in build_texts(workload) for text in batch]
    assert sorted(texts) == ["one"] * 3 + ["two"] * 3


@pytest.mark.parametrize("content", ["", '{"txet": "one"}', "not json", '{"text": ""}', '"text"'])
def test_a_bad_corpus_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "texts.jsonl").write_text(content)
    workload = load_workload(write(tmp_path, "corpus: texts.jsonl"))
    with pytest.raises(WorkloadError, match=r"texts\.jsonl"):
        build_texts(workload)
