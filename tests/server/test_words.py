"""When tokens are said, and the words they make: as transformers finds both, which takes after openai-whisper."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audio_segments import END_ID, RAW, TOKENS, cut, spell
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from server.audio.alignment import Weights, align_tokens, filter_median, warp
from server.audio.words import split_words, time_words

TEXTS = [
    " Once upon a time, there was a little girl.",
    " He said: \"Stop here, please!\" (and the lazy dog didn't) [END] ... -- it's",
    "été garçon naïve 你好 世界 😀 Grüße",
    " 你好，世界。",
    "!? , .",
    "  two  blanks ",
    "",
]


class TheirTokenizer:
    """What transformers' function asks of one."""

    eos_token_id = END_ID
    language = "english"

    def decode(self, ids: list[int], decode_with_timestamps: bool) -> str:
        return RAW.decode(ids)


def draw_weights(num_tokens: int, num_heads: int, num_frames: int, seed: int = 0) -> Weights:
    """As cross-attention gives them: of each token and head they add to 1."""
    logits = np.random.default_rng(seed).normal(size=(num_tokens, num_heads, num_frames)) * 3
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(-1, keepdims=True), np.float32)


@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("length", [1, 3, 4, 20])
def test_medians_are_those_of_transformers(length: int, width: int) -> None:
    rows = np.random.default_rng(length).normal(size=(5, length)).astype(np.float32)
    expected = _median_filter(torch.from_numpy(rows)[None], width)[0].numpy()
    np.testing.assert_array_equal(filter_median(rows, width), expected)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 12), st.integers(1, 25), st.integers(0, 1 << 20), st.booleans())
def test_the_cheapest_way_is_that_of_transformers(num_tokens: int, num_frames: int, seed: int, is_even: bool) -> None:
    """Also where many ways are equally cheap."""
    random = np.random.default_rng(seed)
    costs = random.normal(size=(num_tokens, num_frames))
    costs = costs.round() if is_even else costs
    for ours, theirs in zip(warp(costs), _dynamic_time_warping(costs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def align_by_transformers(weights: Weights, width: int) -> list[int]:
    """As `_extract_token_timestamps` goes on from weights [num_heads, num_tokens, num_frames]."""
    matrix = torch.from_numpy(weights).transpose(0, 1)
    std, mean = torch.std(matrix, dim=-2, keepdim=True, unbiased=False), torch.mean(matrix, dim=-2, keepdim=True)
    smoothed = _median_filter((matrix - mean) / std, width).mean(dim=0)
    tokens, frames = _dynamic_time_warping(-smoothed.double().numpy())
    jumps = np.pad(np.diff(tokens), (1, 0), constant_values=1).astype(bool)
    found: list[int] = frames[jumps].tolist()
    return found


@pytest.mark.parametrize(("num_tokens", "num_frames"), [(2, 2), (3, 40), (20, 90), (30, 7)])
def test_tokens_end_where_transformers_has_it(num_tokens: int, num_frames: int) -> None:
    for seed in range(5):
        weights = draw_weights(num_tokens, 3, num_frames, seed)
        assert align_tokens(weights, 7).tolist() == align_by_transformers(weights, 7)


def test_tokens_follow_what_they_look_at() -> None:
    """Five tokens, ten frames each. Each looks at the one behind it, so that it ends where that begins."""
    weights = np.full((5, 2, 50), 1e-3, np.float32)
    for token in range(5):
        weights[token, :, 10 * token : 10 * token + 10] = 0.1
    assert align_tokens(weights, 7).tolist() == [0, 10, 20, 30, 40]


def test_what_all_tokens_look_at_alike_says_nothing() -> None:
    """One token alone too: there is nothing to compare it with."""
    for num_tokens in (1, 3):
        found = align_tokens(np.full((num_tokens, 2, 9), 1 / 9, np.float32), 7)
        assert len(found) == num_tokens and found[0] == 0 and (np.diff(found) >= 0).all()


@pytest.mark.parametrize(("code", "name"), [("en", "english"), ("zh", "chinese")])
@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_transformers(text: str, code: str, name: str) -> None:
    token_ids = RAW.encode(text, add_special_tokens=False).ids
    words, _, places = _combine_tokens_into_words(TheirTokenizer(), token_ids, name)
    found = split_words(TOKENS, token_ids, code)
    assert [each.text for each in found] == words
    assert [list(range(each.first, each.end)) for each in found] == places


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(5, END_ID - 1), max_size=30), st.sampled_from([("en", "english"), ("ja", "japanese")]))
def test_any_tokens_make_the_words_of_transformers(token_ids: list[int], language: tuple[str, str]) -> None:
    """Characters of which bytes are missing, too."""
    words, _, places = _combine_tokens_into_words(TheirTokenizer(), token_ids, language[1])
    found = split_words(TOKENS, token_ids, language[0])
    assert [each.text for each in found] == words
    assert [list(range(each.first, each.end)) for each in found] == places


def test_words_of_segments_have_the_times_of_their_tokens() -> None:
    """From where the token before them ends, that of a time among them, to where their last one does; in a window that
    begins two seconds into the sound."""
    token_ids = spell(0.0, " the", 0.4, 0.4, " lazy dog.", 1.0)
    segments, _ = cut(token_ids, begin=200)
    ends = [10 * place for place in range(len(token_ids))]
    found = [time_words(segment, ends, TOKENS, "en") for segment in segments]
    assert [[word.text for word in words] for words in found] == [["the"], ["lazy", "dog."]]
    (the,), (lazy, dog) = found
    num_first = len(spell(0.0, " the"))
    assert (the.begin_s, the.end_s) == (2.0, 2.0 + 0.2 * (num_first - 1))
    assert lazy.begin == 200 + 20 * (num_first + 1) and lazy.end == dog.begin
    assert dog.end == 200 + 20 * (len(token_ids) - 2)


def test_the_first_word_of_a_window_may_have_no_time_before_it() -> None:
    (segment,), _ = cut(spell(" the"), num_frames=100)
    (word,) = time_words(segment, [7], TOKENS, "en")
    assert (word.text, word.begin, word.end) == ("the", 0, 14)
