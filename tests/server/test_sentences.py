"""Texts to sentences and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.sentences import keep_whole, split_text


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Dr. Smith slept. He woke!", "en", ("Dr. Smith slept.", "He woke!")),
        ("One.\n\n  Two? 'Three.'\n", "en", ("One.", "Two?", "'Three.'")),
        ("今日は晴れ。明日は雨。", "ja", ("今日は晴れ。", "明日は雨。")),
        ("no end", "xx", ("no end",)),
        (" \n ", "en", ()),
    ],
)
def test_sentences(text: str, language: str, expected: tuple[str, ...]) -> None:
    assert split_text(text, language).sentences == expected


@given(
    st.text(alphabet=st.sampled_from("ab .!?\n\t。'\"\u2028"), max_size=80), st.sampled_from(["en", "de", "ja", "xx"])
)
def test_sentences_and_gaps_are_the_text(text: str, language: str) -> None:
    split = split_text(text, language)
    assert split.join(split.sentences) == text
    assert all(sentence.strip() == sentence and sentence for sentence in split.sentences)
    assert not "".join(split.gaps).strip()


def test_answers_get_the_gaps_of_their_sentences() -> None:
    assert split_text("One.\n\nTwo.  Three.\n").join(["Eins.", "Zwei.", "Drei."]) == "Eins.\n\nZwei.  Drei.\n"


def test_a_whole_text_is_one_sentence() -> None:
    assert keep_whole(" a. b. ").join([" c "]) == " c "
