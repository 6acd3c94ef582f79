"""What is read of a stream, what makes an answer a good one, and the numbers of a result, with times that are given."""

import json
import math
from collections.abc import Sequence

import pytest

from loadtest.client import Answer
from loadtest.measure import LoopLag, Result, Sample, Traffic, Window, measure
from loadtest.slo import TokenSlo
from loadtest.token_stream import TokenReader, Tokens

ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
END = {"choices": [{"delta": {}, "finish_reason": "length"}]}


def encode(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def say(text: str, ids: list[int] | None = None) -> dict[str, object]:
    choice = {"delta": {"content": text}}
    return {"choices": [choice if ids is None else choice | {"token_ids": ids}]}


def count(num_tokens: int) -> dict[str, object]:
    return {"choices": [], "usage": {"completion_tokens": num_tokens}}


def read(*pieces: tuple[float, bytes]) -> tuple[Tokens | None, str]:
    reader = TokenReader()
    for now_s, data in pieces:
        reader.feed(data, now_s)
    return reader.finish()


def read_whole(*pieces: tuple[float, bytes]) -> Tokens:
    """Of a stream that then ends as it should."""
    tokens, error = read(*pieces, (99.0, b"data: [DONE]\n\n"))
    assert tokens is not None and not error
    return tokens


def test_tokens_have_the_times_of_their_pieces() -> None:
    tokens = read_whole(
        (1.0, encode(ROLE)),  # no token
        (2.0, encode(say("a", [1]))),
        (2.5, encode(say("b", [2]))),
        (3.25, encode(say("c", [3]))),
        (4.0, encode(END, count(3))),
    )
    assert tokens == Tokens(3, 2.0, 3.25, [0.5, 0.75], 0.75)
    assert tokens.mean_gap_s == 0.625


def test_tokens_that_come_together_share_the_wait_for_them() -> None:
    tokens = read_whole((1.0, encode(say("a", [1]))), (4.0, encode(say("bcd", [2, 3, 4]))), (4.0, encode(count(4))))
    assert tokens == Tokens(4, 1.0, 4.0, [1.0, 1.0, 1.0], 3.0)
    assert tokens.mean_gap_s == 1.0


def test_ids_tell_of_tokens_without_text_and_of_text_without_tokens() -> None:
    tokens = read_whole((1.0, encode(say("a", [1]))), (2.0, encode(say("", [2]))), (3.0, encode(say("é", []))))
    assert tokens == Tokens(2, 1.0, 2.0, [1.0], 1.0)


def test_without_ids_a_piece_of_text_is_a_token_and_usage_has_the_last_word() -> None:
    completion = {"choices": [{"text": "a"}], "usage": None}
    tokens = read_whole((1.0, encode(completion)), (2.0, encode(completion)), (3.0, encode(completion, count(5))))
    assert tokens == Tokens(5, 1.0, 3.0, [1.0, 1.0], 1.0)
    assert tokens.mean_gap_s == 0.5


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_stream_may_be_cut_anywhere(end: str) -> None:
    data = encode(ROLE, say("a", [1]), say("b", [2]), count(2)).replace(b"\n", end.encode()) + b": a comment\n"
    tokens = read_whole(*((float(place), data[place : place + 1]) for place in range(len(data))))
    assert tokens.num_tokens == 2
    ends = [index for index in range(len(data)) if data[index : index + 1] == b"\n"]
    assert (tokens.first_s, tokens.last_s) == (ends[2], ends[4])  # each event ends in two


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(say("a"), {"error": {"type": "server_error", "message": "long"}}), "error event: server_error"),
        (encode(say("a"), {"error": {"code": "deadline", "type": "x"}}) + b"data: [DONE]\n\n", "error event: deadline"),
        (encode({"error": "overloaded"}), "error event: overloaded"),
        (encode(say("a")), "stream without an end"),
        (encode(ROLE, END) + b"data: [DONE]\n\n", "stream without a token"),
        (b"data: {\n\ndata: [DONE]\n\n", "event that is not JSON"),
        (b"", "stream without an end"),
    ],
)
def test_a_stream_that_breaks_is_an_error(data: bytes, message: str) -> None:
    assert read((1.0, data)) == (None, message)


def test_the_slo_is_read() -> None:
    assert TokenSlo.parse("ttft=500ms,itl=0.1s") == TokenSlo(500, 100)
    assert TokenSlo.parse("itl=20ms, ttft=2s") == TokenSlo(2000, 20)
    assert TokenSlo.parse(str(TokenSlo(1500, 12.5))) == TokenSlo(1500, 12.5)
    assert TokenSlo(500, 100).allowed_total_ms(11) == 1500


@pytest.mark.parametrize("text", ["", "500", "ttft=500ms", "ttft=500,itl=100", "ttft=1s,lti=1s", "ttft=0ms,itl=1ms"])
def test_a_wrong_slo_is_shown(text: str) -> None:
    with pytest.raises(ValueError, match="ttft=500ms"):
        TokenSlo.parse(text)


def make_sample(start_s: float, ttft_s: float, gaps_s: Sequence[float]) -> Sample:
    first_s = start_s + ttft_s
    last_s = first_s + sum(gaps_s)
    tokens = Tokens(len(gaps_s) + 1, first_s, last_s, list(gaps_s), max(gaps_s, default=0.0))
    return Sample(start_s, last_s, Answer(200, tokens=tokens))


def measure_all(samples: Sequence[Sample], window: Window) -> Result:
    slo = TokenSlo(ttft_ms=500, itl_ms=250)
    return measure(samples, Traffic("mine", [], 1), window, mode="sweep", slo_ms=9e9, token_slo=slo, lag=LoopLag())


def test_a_result_has_the_latencies_of_all_tokens_and_the_share_of_good_answers() -> None:
    samples = [
        make_sample(0.0, 0.25, [0.125] * 8),  # good
        make_sample(1.0, 0.25, [0.125] * 6 + [0.75]),  # good by its mean, in spite of a pause
        make_sample(2.0, 0.75, [0.125] * 2),  # late
        make_sample(3.0, 0.25, [0.375] * 2),  # slow
        make_sample(4.0, 0.5, []),  # good: one token has no latency between tokens
        Sample(5.0, 5.5, Answer(200, error="error event: server_error")),
        Sample(5.0, 5.5, Answer(429)),
        Sample(5.0, 5.5, Answer(0, error="Timeout")),
    ]
    row = measure_all(samples, Window(0, 10))
    assert (row.requests, row.errors, row.rejected) == (8, 2, 1)
    assert row.good_share == 3 / 8 and row.goodput_per_s == 0.3
    assert row.requests_per_s == 0.5 and row.tokens_per_s == (9 + 8 + 3 + 3 + 1) / 10
    assert (row.ttft_p50_ms, row.ttft_p95_ms, row.ttft_p99_ms) == (250, 750, 750)
    assert (row.itl_p50_ms, row.itl_p95_ms, row.itl_p99_ms, row.itl_max_ms) == (125, 750, 750, 750)
    assert row.p99_ms == pytest.approx(1750)
    assert "error event: server_error: 1" in row.failures


def test_rates_are_of_what_ends_in_the_window_and_latencies_of_what_starts_in_it() -> None:
    before, after = make_sample(0.5, 0.25, [0.5]), make_sample(2.5, 0.125, [0.5])
    row = measure_all([before, after], Window(1, 3))
    assert row.tokens_per_s == 1 and row.goodput_per_s == 0  # the first is too slow
    assert row.ttft_p50_ms == 125 and row.good_share == 0


def test_nothing_good_is_no_share_and_no_latency() -> None:
    row = measure_all([Sample(1.0, 2.0, Answer(500))], Window(0, 10))
    assert row.good_share == row.tokens_per_s == row.goodput_per_s == 0
    assert math.isnan(row.ttft_p99_ms) and math.isnan(row.itl_max_ms)
    assert row.is_generation
