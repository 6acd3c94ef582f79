"""Sampling against its plain definition, row by row in Python, and against the processors of transformers."""

from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime import sampling_filters
from runtime.batch import (
    NO_TOKEN,
    History,
    OnlyTokens,
    SampledTokens,
    Sampling,
    SparseBias,
    TimestampRule,
    TokenMasks,
    TokenRanges,
)
from runtime.sampling import sample

NEAR = 1e-5
"""Two sums of fp32 probabilities this close may be on either side of each other."""
DTYPES = {
    "top_k": np.int32,
    "num_top": np.int32,
    "forced_ids": np.int64,
    "uniforms": np.float64,
    "is_ranked": np.bool_,
}
DEFAULTS = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "uniforms": 0.5,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "num_top": -1,
    "forced_ids": NO_TOKEN,
    "is_ranked": False,
}


def make_sampling(num_logits: int, **values: Any) -> Sampling:
    """Of numbers, one for all rows, or lists of them. The arrays are read-only, as they are behind a process border."""
    arrays: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        arrays[name] = np.full(num_logits, values.pop(name, default), DTYPES.get(name, np.float32))
        arrays[name].setflags(write=False)
    return Sampling(**arrays, **values)


def take_row(sampling: Sampling, row: int) -> Sampling:
    """That row alone."""
    arrays: dict[str, Any] = {name: getattr(sampling, name)[row : row + 1] for name in DEFAULTS}
    bias, history, masks = sampling.bias, sampling.history, sampling.masks
    if bias is not None:
        of_row = bias.rows == row
        arrays["bias"] = SparseBias(np.zeros(of_row.sum(), np.int64), bias.ids[of_row], bias.values[of_row])
    if history is not None:
        of_row = history.rows == row
        ids, is_generated = history.ids[of_row], history.is_generated[of_row]
        arrays["history"] = History(np.zeros(of_row.sum(), np.int64), ids, is_generated)
    if masks is not None:
        of_row = masks.rows == row
        arrays["masks"] = TokenMasks(np.zeros(of_row.sum(), np.int64), masks.bits[of_row])
    if sampling.only is not None and row in sampling.only.rows:
        ids = sampling.only.ids[sampling.only.rows == row]
        arrays["only"] = OnlyTokens(np.zeros(len(ids), np.int64), ids)
    if sampling.ranges is not None:
        of_row = sampling.ranges.rows == row
        firsts, ends = sampling.ranges.firsts[of_row], sampling.ranges.ends[of_row]
        arrays["ranges"] = TokenRanges(np.zeros(len(ends), np.int64), firsts, ends)
    if sampling.timestamps is not None and row in sampling.timestamps.rows:
        begins = sampling.timestamps.begins[sampling.timestamps.rows == row]
        arrays["timestamps"] = TimestampRule(np.zeros(1, np.int64), begins)
    return Sampling(**arrays)


def random_logits(num_logits: int, vocab_size: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(num_logits, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def narrow(*widths: int, block_size: int = 2) -> Any:
    """Other widths to try than the usual ones, so that small vocabularies go all ways."""
    return mock.patch.multiple(sampling_filters, WIDTHS=widths, BLOCK_SIZE=block_size)


def pack_mask(allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    words = np.zeros((len(allowed), -(-allowed.shape[1] // 32)), np.uint32)
    for row, token in np.argwhere(allowed):
        words[row, token // 32] |= np.uint32(1 << (token % 32))
    return words


# The plain definition.


def adjust_row(logits: npt.NDArray[np.float64], sampling: Sampling) -> npt.NDArray[np.float64]:
    """Of the only row of `sampling`."""
    logits = normalise(logits) if sampling.is_ranked[0] else logits.copy()
    history, bias, masks = sampling.history, sampling.bias, sampling.masks
    if history is not None:
        for token in set(history.ids.tolist()):
            penalty = float(sampling.repetition_penalty[0])
            logits[token] *= 1 / penalty if logits[token] > 0 else penalty
        generated = history.ids[history.is_generated].tolist()
        for token in set(generated):
            count = generated.count(token)
            logits[token] -= float(sampling.presence_penalty[0]) + count * float(sampling.frequency_penalty[0])
    if sampling.only is not None:
        logits[:] = -np.inf
        logits[sampling.only.ids] = 0
    if bias is not None:
        for token, value in zip(bias.ids.tolist(), bias.values.tolist(), strict=True):
            logits[token] += value
    if sampling.ranges is not None:
        for first, end in zip(sampling.ranges.firsts, sampling.ranges.ends, strict=True):
            logits[first:end] = -np.inf
    if masks is not None and len(masks.rows):
        for token in range(len(logits)):
            if not masks.bits[0, token // 32] >> np.uint32(token % 32) & 1:
                logits[token] = -np.inf
    if sampling.timestamps is not None:
        begin = sampling.timestamps.begins[0]
        if np.logaddexp.reduce(logits[begin:]) > logits[:begin].max():
            logits[:begin] = -np.inf
    return logits


def normalise(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max()
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalised


def find_allowed(logits: npt.NDArray[np.float64], sampling: Sampling) -> set[int]:
    """The tokens that the only row of `sampling` may become: several where sums are NEAR its number or limits."""
    temperature, uniform = float(sampling.temperature[0]), float(sampling.uniforms[0])
    if sampling.forced_ids[0] >= 0:
        return {int(sampling.forced_ids[0])}
    if not temperature:
        return {int(logits.argmax())}
    weights = np.exp((logits - logits.max()) / temperature)
    probs = (weights / weights.sum()).tolist()
    order = sorted(range(len(probs)), key=lambda token: (-logits[token], token))
    allowed: set[int] = set()
    for slack in (-NEAR, 0.0, NEAR):
        kept = keep_tokens(order, probs, sampling, slack)
        mass = sum(probs[token] for token in kept)
        start = 0.0
        for token in kept:
            end = start + probs[token] / mass
            if start - NEAR <= uniform < end + NEAR:
                allowed.add(token)
            start = end
    return allowed


def keep_tokens(order: list[int], probs: list[float], sampling: Sampling, slack: float) -> list[int]:
    kept = [token for token in order if probs[token]]
    if sampling.top_k[0]:
        kept = kept[: sampling.top_k[0]]
    if sampling.top_p[0] < 1:
        limit = float(sampling.top_p[0]) * sum(probs[token] for token in kept) + slack
        before = [sum(probs[token] for token in kept[:place]) for place in range(len(kept))]
        kept = [token for place, token in enumerate(kept) if place == 0 or before[place] < limit]
    limit = float(sampling.min_p[0]) * probs[kept[0]] * (1 + slack)
    return [token for token in kept if token == kept[0] or probs[token] >= limit]


# Against it.


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Sampling]:
    """Logits are quarters, and temperatures kind to them, so that equal ones are met and stay equal."""
    num_logits, vocab_size = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.integers(-16, 17, (num_logits, vocab_size)) / 4 * draw(st.sampled_from([0, 0.5, 1, 4]))

    def rows(elements: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(elements, min_size=num_logits, max_size=num_logits))

    values: dict[str, Any] = {
        "temperature": rows(st.sampled_from([0, 0.5, 1, 2])),
        "top_k": rows(st.sampled_from([0, 0, 1, 3, 10, 69, 100])),
        "top_p": rows(st.one_of(st.just(1), st.floats(0, 1))),
        "min_p": rows(st.one_of(st.just(0), st.floats(0, 1))),
        "uniforms": rows(st.floats(0, 1, exclude_max=True)),
        "repetition_penalty": rows(st.sampled_from([1, 1, 2, 0.5])),
        "presence_penalty": rows(st.sampled_from([0, 0, 0.5, -1])),
        "frequency_penalty": rows(st.sampled_from([0, 0, 0.25, -0.5])),
        "num_top": rows(st.integers(-1, 5)),
        "forced_ids": rows(st.one_of(st.just(NO_TOKEN), st.just(NO_TOKEN), st.integers(0, vocab_size - 1))),
    }
    values["is_ranked"] = [not temperature and draw(st.booleans()) for temperature in values["temperature"]]

    def places(num: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return rng.integers(0, num_logits, num), rng.integers(0, vocab_size, num)

    if draw(st.booleans()):
        num = draw(st.integers(0, 100))
        values["history"] = History(*places(num), rng.random(num) < 0.5)
    if draw(st.booleans()):
        num = draw(st.integers(0, 40))
        biases = rng.choice([1, -2.5, -np.inf, 0.25], num).astype(np.float32)
        values["bias"] = SparseBias(*places(num), biases)
    if draw(st.booleans()):
        masked = np.flatnonzero(rng.random(num_logits) < 0.5)
        allowed = rng.random((len(masked), vocab_size)) < draw(st.sampled_from([0.1, 0.5, 1]))
        values["masks"] = TokenMasks(masked, pack_mask(allowed))
    if draw(st.booleans()):
        values["only"] = OnlyTokens(*places(3))
    if draw(st.booleans()):
        values["ranges"] = TokenRanges(*places(2), rng.integers(0, vocab_size + 1, 2))
    if draw(st.booleans()) and vocab_size > 1:
        ruled = np.flatnonzero(rng.random(num_logits) < 0.5)
        values["timestamps"] = TimestampRule(ruled, rng.choice([1, vocab_size - 1], len(ruled)))
        for row, begin in zip(ruled, values["timestamps"].begins, strict=True):
            logits[row, begin:] += 2.0**-10  # exact in fp32 as all else is, so that none is as probable as a text
    return torch.tensor(logits, dtype=torch.float32), make_sampling(num_logits, **values)


@given(cases(), st.sampled_from([(), (1,), (2, 7), (16,), sampling_filters.WIDTHS]), st.sampled_from([2, 5, 16]))
@settings(deadline=None, max_examples=150)
def test_plain_definition(case: tuple[Tensor, Sampling], widths: tuple[int, ...], block_size: int) -> None:
    logits, sampling = case
    with narrow(*widths, block_size=block_size):
        tokens = sample(logits.clone(), sampling)
    for row in range(len(logits)):
        alone = take_row(sampling, row)
        adjusted = adjust_row(logits[row].double().numpy(), alone)
        if np.isneginf(adjusted).all():
            assert tokens.token_ids[row] == NO_TOKEN and np.isnan(tokens.logprobs[row])
            continue
        assert tokens.token_ids[row] in find_allowed(adjusted, alone)
        told = adjusted if sampling.is_ranked[row] else normalise(adjusted)
        check_logprobs(tokens, row, told, int(sampling.num_top[row]))


def check_logprobs(tokens: SampledTokens, row: int, expected: npt.NDArray[np.float64], num_top: int) -> None:
    wanted = [expected[tokens.token_ids[row]] if num_top >= 0 else np.nan]
    np.testing.assert_allclose(tokens.logprobs[row : row + 1], wanted, rtol=1e-5, atol=1e-5)
    order = sorted(np.flatnonzero(expected > -np.inf).tolist(), key=lambda token: (-expected[token], token))
    top = order[: max(num_top, 0)]
    rest = tokens.top_ids.shape[1] - len(top)
    assert tokens.top_ids[row].tolist() == top + [NO_TOKEN] * rest
    values = [*expected[top], *[np.nan] * rest]
    np.testing.assert_allclose(tokens.top_logprobs[row], values, rtol=1e-5, atol=1e-5)


@given(cases(), st.sampled_from([(), (1,), (2, 7), (16,)]))
@settings(deadline=None, max_examples=60)
def test_row_does_not_depend_on_others_nor_on_the_way(case: tuple[Tensor, Sampling], widths: tuple[int, ...]) -> None:
    logits, sampling = case
    together = sample(logits.clone(), sampling)
    for row in range(len(logits)):
        with narrow(*widths):
            alone = sample(logits[row : row + 1].clone(), take_row(sampling, row))
        check_same_row(alone, 0, together, row)


def check_same_row(actual: SampledTokens, row: int, expected: SampledTokens, expected_row: int) -> None:
    """Bit by bit."""
    num_top = actual.top_ids.shape[1]
    assert actual.token_ids[row] == expected.token_ids[expected_row]
    np.testing.assert_array_equal(actual.logprobs[row], expected.logprobs[expected_row])
    np.testing.assert_array_equal(actual.top_ids[row], expected.top_ids[expected_row, :num_top])
    np.testing.assert_array_equal(actual.top_logprobs[row], expected.top_logprobs[expected_row, :num_top])


@pytest.mark.parametrize("vocab_size", [5003, 8192])
def test_large_vocabulary_goes_every_way_to_the_same_tokens(vocab_size: int) -> None:
    """Rows from peaked to flat, so that each width decides some of them, and top-k between the widths."""
    rng = np.random.default_rng(1)
    num_logits = 96
    logits = random_logits(num_logits, vocab_size) * torch.linspace(0.1, 2.5, num_logits)[:, None]
    logits[::2] = logits[::2].bfloat16().float()
    sampling = make_sampling(
        num_logits,
        temperature=rng.uniform(0.5, 1.5, num_logits),
        top_k=rng.choice([0, 0, 5, 127, 128, 129, 1024, 3000, 10000], num_logits),
        top_p=rng.choice([1, 0.95, 0.3], num_logits),
        min_p=rng.choice([0, 0, 0.01], num_logits),
        uniforms=rng.random(num_logits),
        num_top=rng.choice([-1, 0, 5, 20], num_logits),
    )
    with mock.patch.object(sampling_filters, "choose_places", side_effect=sampling_filters.choose_places) as choose:
        expected = sample(logits.clone(), sampling)
    assert [call.args[0].shape[1] for call in choose.call_args_list] == [128, 1024, 4096, vocab_size]
    for widths, block_size in [((), 16), ((1,), 64), ((300,), 4), ((4999,), 16)]:
        with narrow(*widths, block_size=block_size):
            other = sample(logits.clone(), sampling)
        np.testing.assert_array_equal(other.token_ids, expected.token_ids)
        np.testing.assert_array_equal(other.top_ids, expected.top_ids)
    for row in range(0, num_logits, 7):
        check_same_row(sample(logits[row : row + 1].clone(), take_row(sampling, row)), 0, expected, row)


@pytest.mark.parametrize("vocab_size", [7, 5003, 50257])
def test_probabilities_are_the_softmax_and_the_same_alone(vocab_size: int) -> None:
    logits, temperature = random_logits(9, vocab_size), torch.linspace(0.1, 2, 9)
    together = sampling_filters.compute_probs(logits.clone(), temperature)
    expected = (logits.double() / temperature[:, None]).softmax(-1)
    torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-9)
    for row in range(9):
        alone = sampling_filters.compute_probs(logits[row : row + 1].clone(), temperature[row : row + 1])
        assert torch.equal(alone[0], together[row])


# Against transformers.

FILTERS: list[dict[str, Any]] = [
    {"top_k": 20},
    {"top_p": 0.9},
    {"min_p": 0.02},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 100, "min_p": 0.01},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.03},
    {"top_k": 1, "top_p": 0.01, "min_p": 1.0},
    {"top_p": 0.0},
    {},
]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_kept_tokens_and_probabilities_are_those_of_transformers(filters: dict[str, Any], temperature: float) -> None:
    """Numbers at both ends and in the middle of where each of their tokens lies must give that token."""
    logits = random_logits(1, 300, scale=2.0, seed=3)
    expected = process_by_transformers(logits, temperature, **filters)
    order = expected.argsort(descending=True)[: int((expected > 0).sum())]
    ends = expected[order].cumsum(-1)
    starts = ends - expected[order]
    assert filters or len(order) == 300
    inside = torch.stack([torch.lerp(starts, ends, place) for place in (0.001, 0.5, 0.999)], 1)
    is_wide = (expected[order] > 1e-3)[:, None] | torch.tensor([False, True, False])
    uniforms, wanted = inside[is_wide].numpy(), order[:, None].expand(-1, 3)[is_wide]
    sampling = make_sampling(len(uniforms), temperature=temperature, uniforms=uniforms, **filters)
    tokens = sample(logits.expand(len(uniforms), -1).clone(), sampling)
    assert tokens.token_ids.tolist() == wanted.tolist()


def process_by_transformers(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    if min_p:
        processors.append(MinPLogitsWarper(min_p))
    probs: Tensor = processors(torch.zeros(1, 0, dtype=torch.long), logits.double()).softmax(-1)[0]
    return probs


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits(3, 50)
    ids = np.random.default_rng(0).integers(0, 50, (3, 20))
    history = History(np.repeat(np.arange(3), 20), ids.ravel(), np.tile(np.arange(20) > 10, 3))
    tokens = sample(logits.clone(), make_sampling(3, repetition_penalty=penalty, history=history, num_top=50))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(ids), logits).log_softmax(-1)
    top = expected.sort(-1, descending=True)
    assert tokens.top_ids.tolist() == top.indices.tolist()
    np.testing.assert_allclose(tokens.top_logprobs, top.values.numpy(), rtol=1e-5, atol=1e-5)


# Distributions.

CHI_SQUARE_LIMIT = {9: 33.7, 49: 95.0}
"""By degrees of freedom: passed by chance once in 10,000, and the numbers here are always the same."""


@pytest.mark.parametrize("top_k", [0, 10])
def test_tokens_are_as_frequent_as_they_are_probable(top_k: int) -> None:
    num_draws, logits = 20_000, random_logits(1, 50, scale=1.0, seed=5)
    uniforms = np.random.default_rng(6).random(num_draws)
    sampling = make_sampling(num_draws, temperature=0.9, top_k=top_k, uniforms=uniforms)
    tokens = sample(logits.expand(num_draws, -1).clone(), sampling)
    expected = process_by_transformers(logits, 0.9, top_k).numpy() * num_draws
    counts = np.bincount(tokens.token_ids, minlength=50)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < CHI_SQUARE_LIMIT[int(possible.sum()) - 1]


@pytest.mark.parametrize("filters", [{"top_k": 7}, {"top_k": 35}, {"min_p": 1e-9}, {}], ids=str)
def test_number_just_under_one_gives_the_last_kept_token(filters: dict[str, Any]) -> None:
    """Not a forbidden one, however the sum of the rounded probabilities ends; with no filter, one of its last."""
    logits = random_logits(50, 40)
    logits[:, 30:] = -torch.inf
    sampling = make_sampling(50, temperature=1, uniforms=np.nextafter(1, 0), **filters)
    token_ids = sample(logits.clone(), sampling).token_ids
    probs, order = logits.softmax(-1).sort(-1, descending=True)
    places = (order.numpy() == token_ids[:, None]).argmax(1)
    num_kept = filters.get("top_k", 30)
    assert (places < 30).all()
    assert (places == min(num_kept, 30) - 1).all() or not filters
    assert all(probs[row, place + 1 : num_kept].sum() < NEAR for row, place in enumerate(places))


def test_limits_that_are_met_exactly() -> None:
    """Of four equal tokens two have the mass 0.5, and all are as probable as the most probable one."""
    sampling = make_sampling(3, temperature=1, uniforms=0.99, top_p=[0.5, 0.51, 1], min_p=[0, 0, 1])
    assert sample(torch.zeros(3, 4), sampling).token_ids.tolist() == [1, 2, 3]


# Equal logits.


@pytest.mark.parametrize("widths", [(), (3,), (128,)])
def test_equal_tokens_are_in_the_order_of_their_ids(widths: tuple[int, ...]) -> None:
    vocab_size = 600
    uniforms = (np.arange(vocab_size) + 0.5) / vocab_size
    with narrow(*widths):
        tokens = sample(
            torch.zeros(vocab_size, vocab_size), make_sampling(vocab_size, temperature=1, uniforms=uniforms)
        )
        assert tokens.token_ids.tolist() == list(range(vocab_size))
        first = sample(torch.zeros(600, 600), make_sampling(600, temperature=1, uniforms=uniforms, top_k=6))
        assert first.token_ids.tolist() == [place // 100 for place in range(600)]
        half = sample(torch.zeros(600, 600), make_sampling(600, temperature=1, uniforms=uniforms, top_p=0.0999))
        assert half.token_ids.tolist() == [place // 10 for place in range(600)]


def test_greedy_takes_the_first_of_equal_tokens() -> None:
    logits = torch.zeros(2, 5000)
    logits[1, [700, 4000, 701]] = 2.0
    tokens = sample(logits, make_sampling(2, num_top=3))
    assert tokens.token_ids.tolist() == [0, 700]
    assert tokens.top_ids.tolist() == [[0, 1, 2], [700, 701, 4000]]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-44])
def test_smallest_temperatures_are_greedy(temperature: float) -> None:
    logits = random_logits(4, 1000, scale=30)
    tokens = sample(logits.clone(), make_sampling(4, temperature=temperature, uniforms=0.999))
    assert tokens.token_ids.tolist() == logits.argmax(-1).tolist()


# What is forbidden, forced or broken.


def test_biases_of_one_token_add_up() -> None:
    bias = SparseBias(np.array([0, 0, 1]), np.array([2, 2, 2]), np.array([3, 4, 5], np.float32))
    tokens = sample(torch.tensor([[6.0, 0, 0], [6.0, 0, 0]]), make_sampling(2, bias=bias))
    assert tokens.token_ids.tolist() == [2, 0]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 70, 1000])
def test_masks_allow_single_tokens(vocab_size: int) -> None:
    allowed = np.eye(vocab_size, dtype=bool)
    masks = TokenMasks(np.arange(vocab_size), pack_mask(allowed))
    sampling = make_sampling(vocab_size, temperature=np.arange(vocab_size) % 2, masks=masks, num_top=2)
    tokens = sample(random_logits(vocab_size, vocab_size), sampling)
    assert tokens.token_ids.tolist() == list(range(vocab_size))
    assert tokens.top_ids.tolist() == [[token, NO_TOKEN] for token in range(vocab_size)]
    assert (tokens.logprobs == 0).all() and np.isnan(tokens.top_logprobs[:, 1]).all()


BROKEN = {
    "nan": [0.0, torch.nan, 1.0],
    "infinite": [0.0, torch.inf, 1.0],
    "infinite and forbidden": [torch.inf, -torch.inf, 1.0],
    "all forbidden": [-torch.inf] * 3,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(
    "values",
    [{}, {"temperature": 1}, {"temperature": 1, "top_k": 2}, {"forced_ids": 1}, {"is_ranked": True}],
    ids=str,
)
def test_broken_row_has_no_token_and_does_not_disturb(name: str, values: dict[str, Any]) -> None:
    """A bias, and a mask that allows only the last token, hide nothing of what is broken."""
    logits = torch.tensor([[1.0, 2, 3], BROKEN[name], [3.0, 2, 1]])
    bias = SparseBias(np.array([1]), np.array([2]), np.array([0.5], np.float32))
    masks = TokenMasks(np.array([1]), np.array([[0b100]], np.uint32))
    sampling = make_sampling(3, num_top=2, bias=bias, masks=masks, **values)
    tokens = sample(logits.clone(), sampling)
    assert tokens.token_ids[1] == NO_TOKEN and np.isnan(tokens.logprobs[1])
    assert (tokens.top_ids[1] == NO_TOKEN).all() and np.isnan(tokens.top_logprobs[1]).all()
    for row in (0, 2):
        check_same_row(tokens, row, sample(logits[row : row + 1].clone(), take_row(sampling, row)), 0)


@pytest.mark.parametrize("name", ["nan", "infinite"])
def test_what_is_forced_or_no_timestamp_hides_nothing_of_what_is_broken(name: str) -> None:
    logits = torch.tensor([BROKEN[name], BROKEN[name][::-1], [0.0, 1, 2]])
    only = OnlyTokens(np.array([0]), np.array([2]))
    timestamps = TimestampRule(np.array([1, 2]), np.array([1, 2]))
    assert sample(logits, make_sampling(3, only=only, timestamps=timestamps)).token_ids.tolist() == [-1, -1, 2]


def test_ranked_rows_tell_what_is_left_of_their_logprobs() -> None:
    """Beams with less left are worse: nothing is shared out among the others, in whatever company."""
    logits = random_logits(2, 20)
    expected = logits.log_softmax(-1)
    bias = SparseBias(np.array([0, 1]), expected.argmax(-1).numpy(), np.full(2, -np.inf, np.float32))
    tokens = sample(logits.clone(), make_sampling(2, is_ranked=[True, False], num_top=1, bias=bias))
    second = expected.topk(2).values[:, 1]
    np.testing.assert_allclose(tokens.top_logprobs[0], second[:1], rtol=1e-6)
    assert float(tokens.top_logprobs[1, 0]) > float(second[1]) + 0.01


def test_forced_tokens_have_their_logprobs() -> None:
    logits = random_logits(3, 20)
    sampling = make_sampling(3, temperature=[0, 1, 1], forced_ids=[4, 5, NO_TOKEN], num_top=[0, 1, -1])
    tokens = sample(logits.clone(), sampling)
    expected = logits.log_softmax(-1)
    assert tokens.token_ids.tolist()[:2] == [4, 5]
    np.testing.assert_allclose(tokens.logprobs[:2], [expected[0, 4], expected[1, 5]], rtol=1e-6)
    assert tokens.top_ids.tolist() == [[NO_TOKEN], [int(expected[1].argmax())], [NO_TOKEN]]
    assert np.isnan(tokens.logprobs[2])


def test_logprobs_are_told_before_temperature() -> None:
    logits = random_logits(1, 20)
    tokens = sample(logits.clone(), make_sampling(1, temperature=0.1, top_k=1, num_top=0))
    np.testing.assert_allclose(tokens.logprobs, logits.log_softmax(-1).amax(-1), rtol=1e-6)
    assert tokens.top_ids.shape == tokens.top_logprobs.shape == (1, 0)


def test_more_top_tokens_than_there_are() -> None:
    tokens = sample(torch.tensor([[1.0, 2.0]]), make_sampling(1, num_top=4))
    assert tokens.top_ids.tolist() == [[1, 0, NO_TOKEN, NO_TOKEN]]
    assert np.isnan(tokens.top_logprobs[0]).tolist() == [False, False, True, True]


def test_no_rows() -> None:
    tokens = sample(torch.zeros(0, 10), make_sampling(0))
    assert tokens.token_ids.shape == tokens.logprobs.shape == (0,)
    assert tokens.top_ids.shape == tokens.top_logprobs.shape == (0, 0)


def test_types() -> None:
    with torch.inference_mode():
        logits = random_logits(2, 300)
    tokens = sample(logits, make_sampling(2, temperature=1, num_top=2))
    assert tokens.token_ids.dtype == tokens.top_ids.dtype == np.int64
    assert tokens.logprobs.dtype == tokens.top_logprobs.dtype == np.float32
