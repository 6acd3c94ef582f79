"""Tokens: what the library gives, cut to the limit, in order, whatever the path."""

import asyncio
import contextlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import CLS, MAX_TOKENS, SEP, UNK, VOCAB, build_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.info import ModelDirectoryError
from server.errors import EmptyInput, InputTooLong, InvalidField, TokenizerFailure
from server.text.chat_template import Chat
from server.text.tokenizer import (
    GUARD_CHARS_PER_TOKEN,
    Input,
    Tokenizer,
    Truncation,
    split_chunks,
)
from server.text.tokenizer_file import load_tokenizer
from server.text.work import Work
from server.wire.job import TokenSequence


def encode(tokenizer: Tokenizer, *inputs: Input, truncation: Truncation = "error") -> list[TokenSequence]:
    return asyncio.run(tokenizer.encode(inputs, truncation=truncation, field="input"))


def ids(*words: str) -> list[int]:
    return [VOCAB.index(word) for word in words]


def test_padding_and_truncation_stored_in_the_file_are_off(tokenizer: Tokenizer) -> None:
    (sequence,) = encode(tokenizer, "word1")
    assert sequence.input_ids.tolist() == [CLS, *ids("word1"), SEP]
    (sequence,) = encode(tokenizer, "word1 " * 10)
    assert sequence.num_tokens == 12
    assert sequence.input_ids.dtype == "int32"


def test_token_types_only_where_there_are_any(tokenizer: Tokenizer) -> None:
    single, pair = encode(tokenizer, "word1", ("word1", "word2"))
    assert single.token_type_ids is None
    assert pair.token_type_ids is not None
    assert pair.token_type_ids.tolist() == [0, 0, 0, 1, 1]


def test_no_token_types_for_a_model_without(model_directory: Path, pool: ThreadPoolExecutor) -> None:
    tokenizer = build_tokenizer(model_directory, pool, type_vocab_size=1)
    assert encode(tokenizer, ("word1", "word2"))[0].token_type_ids is None


@pytest.mark.parametrize("num_words", [1, 13, 14, 15, 16, 100, 5000])
@pytest.mark.parametrize("truncation", ["right", "left"])
def test_truncation_keeps_the_special_tokens(tokenizer: Tokenizer, truncation: Truncation, num_words: int) -> None:
    words = [f"word{index % 60}" for index in range(num_words)]
    (sequence,) = encode(tokenizer, " ".join(words), truncation=truncation)
    kept = words[:14] if truncation == "right" else words[-14:]
    assert sequence.input_ids.tolist() == [CLS, *ids(*kept), SEP]


def test_the_longer_half_of_a_pair_is_cut(tokenizer: Tokenizer) -> None:
    (sequence,) = encode(tokenizer, ("word1 word2", "word3 " * 40), truncation="right")
    assert sequence.input_ids.tolist() == [CLS, *ids("word1", "word2"), SEP, *ids("word3") * 11, SEP]


@pytest.mark.parametrize("blanks", [10, 100, 500])
@pytest.mark.parametrize("truncation", ["right", "left"])
def test_blanks_do_not_hide_the_text_behind_them(tokenizer: Tokenizer, truncation: Truncation, blanks: int) -> None:
    text = (" " * blanks).join(f"word{index}" for index in range(30))
    (sequence,) = encode(tokenizer, text, truncation=truncation)
    words = [f"word{index}" for index in (range(14) if truncation == "right" else range(16, 30))]
    assert sequence.input_ids.tolist() == [CLS, *ids(*words), SEP]


def test_nothing_hides_the_text_behind_it(tokenizer: Tokenizer) -> None:
    text = "word1" + " " * 100_000 + "word2"
    (sequence,) = encode(tokenizer, text, truncation="right")
    assert sequence.input_ids.tolist() == [CLS, *ids("word1", "word2"), SEP]


WORDS = st.lists(
    st.sampled_from(["word1", "word2", "unables", "unable", "x" * 150, "  \n ", "\t", "é", "日本", "a.b,c", " " * 100]),
    max_size=60,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS, truncation=st.sampled_from(["right", "left"]))
def test_the_guard_does_not_change_the_result(
    tokenizer: Tokenizer, model_directory: Path, words: list[str], truncation: Truncation
) -> None:
    text = " ".join(["word3", *words])
    reference = RawTokenizer.from_file(str(model_directory / "tokenizer.json"))
    reference.no_padding()
    reference.enable_truncation(MAX_TOKENS, direction=truncation)
    assert encode(tokenizer, text, truncation=truncation)[0].input_ids.tolist() == reference.encode(text).ids


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(["word1 ", "unables ", "日", "x" * 20]), min_size=1, max_size=30))
def test_too_long_is_refused_exactly_at_the_limit(
    tokenizer: Tokenizer, model_directory: Path, words: list[str]
) -> None:
    text = "".join(words)
    reference = RawTokenizer.from_file(str(model_directory / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    expected = reference.encode(text).ids
    if len(expected) > MAX_TOKENS:
        with pytest.raises(InputTooLong):
            encode(tokenizer, text)
    else:
        assert encode(tokenizer, text)[0].input_ids.tolist() == expected


def test_characters_do_not_count(tokenizer: Tokenizer) -> None:
    """A word nobody knows is one token, however long."""
    text = "a" * (MAX_TOKENS * GUARD_CHARS_PER_TOKEN + 1)
    assert encode(tokenizer, text)[0].input_ids.tolist() == [CLS, UNK, SEP]


@pytest.mark.parametrize(
    ("num_words", "claim"), [(15, "has 17 tokens"), (50, "has 52 tokens"), (900, "has more than 16")]
)
def test_no_more_tokens_are_claimed_than_there_are(tokenizer: Tokenizer, num_words: int, claim: str) -> None:
    with pytest.raises(InputTooLong, match=claim):
        encode(tokenizer, "word1 " * num_words)


def test_a_pair_may_have_one_empty_side(tokenizer: Tokenizer) -> None:
    first, second = encode(tokenizer, ("word1", ""), ("", "word1"))
    assert first.input_ids.tolist() == [CLS, *ids("word1"), SEP, SEP]
    assert second.input_ids.tolist() == [CLS, SEP, *ids("word1"), SEP]


@pytest.mark.parametrize(
    ("empty", "problem"), [("", "must not be empty$"), (("", ""), "must not be empty on both sides")]
)
def test_what_is_empty_is_named(tokenizer: Tokenizer, empty: Input, problem: str) -> None:
    with pytest.raises(EmptyInput, match=rf"^input\[1\] {problem}"):
        encode(tokenizer, "word1", empty)


def test_a_text_without_tokens_is_empty_too(pool: ThreadPoolExecutor) -> None:
    """Blanks, where the tokenizer adds no special tokens: an engine cannot compute nothing."""
    raw = RawTokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = Tokenizer(raw, max_input_tokens=5, vocab_size=1, type_vocab_size=1, pool=pool)
    with pytest.raises(EmptyInput, match=r"^input must have a token at least"):
        encode(tokenizer, "  ")


def test_ids_are_used_as_they_are(tokenizer: Tokenizer) -> None:
    (sequence,) = encode(tokenizer, [5, 0, len(VOCAB) - 1])
    assert sequence.input_ids.tolist() == [5, 0, len(VOCAB) - 1]
    assert sequence.token_type_ids is None


@pytest.mark.parametrize(("truncation", "kept"), [("right", range(16)), ("left", range(4, 20))])
def test_ids_are_cut_too(tokenizer: Tokenizer, truncation: Truncation, kept: range) -> None:
    assert encode(tokenizer, list(range(20)), truncation=truncation)[0].input_ids.tolist() == list(kept)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [([], EmptyInput), ([-1], InvalidField), ([len(VOCAB)], InvalidField), ([10**30], InvalidField)],
)
def test_wrong_ids(tokenizer: Tokenizer, wrong: list[int], problem: type[InvalidField]) -> None:
    with pytest.raises(problem) as caught:
        encode(tokenizer, [1], wrong)
    assert caught.value.param == "input" and caught.value.message.startswith("input[1] ")


def test_many_chunks_give_what_one_text_gives(tokenizer: Tokenizer) -> None:
    texts = [f"word{index % 60} unables " * 20 for index in range(100)]
    alone = [encode(tokenizer, text, truncation="right")[0].input_ids.tolist() for text in texts]
    together = encode(tokenizer, *texts, truncation="right")
    assert [sequence.input_ids.tolist() for sequence in together] == alone


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=50))
@settings(deadline=None)
def test_chunks_cover_everything_once(lengths: list[int]) -> None:
    chunks = split_chunks(["a" * length for length in lengths])
    assert [index for first, last in chunks for index in range(first, last)] == list(range(len(lengths)))


def test_a_panic_of_the_library_is_the_callers_error(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    class Broken:
        def encode(self, *_: object, **__: object) -> object:
            raise Panic("index out of bounds")

        encode_batch = decode_batch = encode

    monkeypatch.setattr(tokenizer, "_plain", Broken())
    for text in ("word1", "word1 " * 1000):
        with pytest.raises(TokenizerFailure, match=r"input\[0\] .* index out of bounds"):
            encode(tokenizer, text, truncation="right")
    for work in (
        tokenizer.shorten(["word1"], 3, field="input"),
        tokenizer.describe(["word1"], add_special_tokens=True, field="input"),
        tokenizer.decode([[1]], skip_special_tokens=True, field="input"),
    ):
        with pytest.raises(TokenizerFailure, match=r"input\[0\] .* index out of bounds"):
            asyncio.run(work)


def test_other_threads_go_on_meanwhile(tokenizer: Tokenizer) -> None:
    """With the library's `encode` they stand still for all of a long text."""
    counts, has_ended = itertools.count(), threading.Event()

    def count() -> None:
        while not has_ended.wait(0.001):
            next(counts)

    thread = threading.Thread(target=count)
    thread.start()
    first = next(counts)
    pieces = tokenizer._describe_text("word1 unables " * 20_000, Work("error", "input", True, False, MAX_TOKENS))
    last = next(counts)
    has_ended.set()
    thread.join()
    assert len(pieces) == 20_000 * 4 + 2
    assert last - first > 20


@pytest.mark.parametrize(
    ("inputs", "is_expected"),
    [
        (["word1"], True),
        (["word1 " * 100], False),
        ([("word1", "word2")] * 3, True),
        (["a"] * 1000, False),
        ([[1] * 500], True),
        ([[1] * 50_000], False),
        ([Chat(({"role": "user", "content": "hi"},))], False),
    ],
)
def test_short_calls_stay_on_the_loops_thread(model_directory: Path, inputs: list[Input], is_expected: bool) -> None:
    pool = ThreadPoolExecutor(1)
    tokenizer = build_tokenizer(model_directory, pool, max_input_tokens=1000)
    with contextlib.suppress(InvalidField):
        encode(tokenizer, *inputs)
    has_worked = bool(pool._threads)
    pool.shutdown()
    assert has_worked != is_expected


@pytest.mark.anyio
async def test_all_tokens_of_a_long_text_are_described(tokenizer: Tokenizer) -> None:
    (pieces,) = await tokenizer.describe(["word1 " * 5000], add_special_tokens=True, field="inputs")
    assert len(pieces) == 5002 and pieces[-2].stop == 29_999
    with pytest.raises(EmptyInput, match=r"inputs\[1\]"):
        await tokenizer.describe(["a", ""], add_special_tokens=True, field="inputs")


def test_a_missing_file_is_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    options = {"max_input_tokens": 8, "vocab_size": 8, "type_vocab_size": 1, "pool": pool}
    with pytest.raises(ModelDirectoryError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, **options)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelDirectoryError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, **options)


def test_lower_case_on_demand(model_directory: Path, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """For models whose sentence-transformers files ask for it, though their tokenizer does not."""
    raw = json.loads((model_directory / "tokenizer.json").read_text())
    raw["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    as_is, lowered = (build_tokenizer(tmp_path, pool, lowercase=choice) for choice in (False, True))
    assert encode(as_is, "WORD1")[0].input_ids.tolist() != encode(as_is, "word1")[0].input_ids.tolist()
    assert encode(lowered, "WORD1")[0].input_ids.tolist() == encode(as_is, "word1")[0].input_ids.tolist()
