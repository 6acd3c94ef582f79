"""Bad words as runs of tokens, few enough for every step to look at them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_generator import build_byte_level

from server.errors import InvalidField
from server.text.bad_words import MAX_TOTAL_TOKENS, MAX_WORD_TOKENS, encode_bad_words
from server.text.tokenizer import Tokenizer

pytestmark = pytest.mark.anyio


@pytest.fixture
def letters(pool: ThreadPoolExecutor) -> Tokenizer:
    raw = build_byte_level()
    return Tokenizer(raw, max_input_tokens=128, vocab_size=raw.get_vocab_size(), type_vocab_size=1, pool=pool)


async def test_with_and_without_a_blank(letters: Tokenizer) -> None:
    raw = build_byte_level()
    found = await encode_bad_words(["girl", " girl", "x"], letters)
    assert {raw.decode(list(run)) for run in found} == {"girl", " girl", "x"}
    assert len(found) == 3, "A blank that is a token of its own leaves the same word."


@pytest.mark.parametrize("num_chars", [500, 100_000])
async def test_each_is_bounded(letters: Tokenizer, num_chars: int) -> None:
    with pytest.raises(InvalidField, match=r"^bad_words\[1\] has .* tokens; the limit is") as caught:
        await encode_bad_words(["ok", "z" * num_chars], letters)
    assert caught.value.param == "bad_words"
    with pytest.raises(InvalidField, match=rf"^bad_words\[1\] .*{MAX_WORD_TOKENS}, shorten it"):
        await encode_bad_words(["ok", "z" * (MAX_WORD_TOKENS + 1)], letters)


async def test_all_together_are_bounded(letters: Tokenizer) -> None:
    words = [f"{number:03}" + "z" * 50 for number in range(MAX_TOTAL_TOKENS // 50)]
    with pytest.raises(InvalidField, match=r"bad_words have \d+ tokens together.*leave some out") as caught:
        await encode_bad_words(words, letters)
    assert caught.value.param == "bad_words"
