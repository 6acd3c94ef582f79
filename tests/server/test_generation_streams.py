"""Streams: each token at once, in OpenAI's order of chunks; and what ends a stream before its time."""

import asyncio
import threading
from typing import Any

import httpx
import orjson
import pytest
from conftest import MakeGenerator, RawCall, wait_until
from fake_generator import GenerationServer, read_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable
from server.http.api import openai_completions
from server.http.api.openai_generation import INLINE_TOKENS, Envelope
from server.wire.job import EngineStatus

pytestmark = pytest.mark.anyio


def join(events: list[Any], index: int = 0) -> str:
    """The text of one choice, of either route."""
    found = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in found)


async def test_a_completion(generator: GenerationServer) -> None:
    generator.say("hello world")
    events = read_events(await generator.complete(stream=True))
    assert join(events) == "hello world"
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1
    assert events[0]["object"] == "text_completion" and "usage" not in events[0]
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    generator.check_idle()


async def test_a_chat(generator: GenerationServer) -> None:
    generator.say("hello world")
    response = await generator.chat(stream=True)
    assert response.headers["cache-control"] == "no-cache" and "x-request-id" in response.headers
    events = read_events(response)
    first, *middle, last = [event["choices"][0] for event in events]
    assert (first["delta"], first["finish_reason"]) == ({"role": "assistant", "content": ""}, None)
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert all(list(choice["delta"]) == ["content"] and choice["finish_reason"] is None for choice in middle)
    assert join(events) == "hello world"
    assert {event["object"] for event in events} == {"chat.completion.chunk"} and len({e["id"] for e in events}) == 1


@pytest.mark.parametrize("is_chat", [False, True])
async def test_usage_if_asked_for(generator: GenerationServer, is_chat: bool) -> None:
    generator.engine.num_cached_tokens = 3
    ask = generator.chat if is_chat else generator.complete
    plain = (await ask()).json()["usage"]
    *events, last = read_events(await ask(stream=True, stream_options={"include_usage": True}))
    assert events and all(event["usage"] is None for event in events)
    assert (last["choices"], last["usage"]) == ([], plain) and last["id"] == events[0]["id"]


async def test_each_token_before_the_next_one_is_made(generator: GenerationServer) -> None:
    gate = generator.engine.gate = asyncio.Semaphore(0)
    generator.say("hello world", end=None)
    ids = generator.engine.answers[0]
    body = {"model": "writer", "prompt": "Once", "stream": True, "max_tokens": len(ids)}
    call = RawCall(generator.app, "/v1/completions", orjson.dumps(body))
    await wait_until(lambda: bool(generator.engine.jobs))
    await asyncio.sleep(0.02)
    assert call.sent == [], "no head before it is known that there is an answer"
    text = ""
    for number, token_id in enumerate(ids):
        gate.release()
        await wait_until(lambda least=number + 2: len(call.sent) >= least)
        assert generator.engine.jobs[0].num_steps == number + 1
        choice = orjson.loads(call.sent[number + 1]["body"].removeprefix(b"data: "))["choices"][0]
        text += choice["text"]
        assert text == generator.raw.decode(ids[: number + 1]) and token_id is not None
    await call.task
    assert call.status == 200 and call.sent[-2]["body"] == b"data: [DONE]\n\n"
    assert call.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_several_prompts_and_answers(generator: GenerationServer) -> None:
    generator.say("hello world", "Once")
    for fields in ({"echo": True}, {}):
        body = (await generator.complete(["one", "two"], n=2, **fields)).json()
        events = read_events(await generator.complete(["one", "two"], n=2, stream=True, **fields))
        assert [join(events, index) for index in range(4)] == [choice["text"] for choice in body["choices"]]
    chat = read_events(await generator.chat(n=2, stream=True))
    assert [join(chat, index) for index in range(2)] == ["hello world", "Once"]
    assert sum(event["choices"][0]["delta"].get("role") == "assistant" for event in chat) == 2


@pytest.mark.parametrize("fields", [{}, {"stop": ["o w"]}, {"echo": True}])
async def test_logprobs_are_those_of_the_whole(generator: GenerationServer, fields: dict[str, Any]) -> None:
    generator.say("hello world é")
    whole = (await generator.complete(logprobs=2, **fields)).json()["choices"][0]["logprobs"]
    events = read_events(await generator.complete(logprobs=2, stream=True, **fields))
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert {key: [item for part in parts for item in part[key]] for key in whole} == whole
    chat = (await generator.chat(logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]["content"]
    events = read_events(await generator.chat(logprobs=True, top_logprobs=1, stream=True))
    found = [event["choices"][0]["logprobs"] for event in events]
    assert [item for part in found if part for item in part["content"]] == chat


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.sampled_from("abn stopé你😀"), max_size=25),
    stops=st.lists(st.text(st.sampled_from("abn stopé你😀"), min_size=1, max_size=4), max_size=3),
    size=st.integers(1, 4),
    max_tokens=st.integers(1, 30),
)
async def test_a_stream_is_its_answer_in_pieces(
    generator: GenerationServer, text: str, stops: list[str], size: int, max_tokens: int
) -> None:
    generator.say(text)
    generator.engine.tokens_per_event = size
    fields = {"stop": stops, "max_tokens": max_tokens}
    whole = (await generator.complete(**fields)).json()["choices"][0]
    events = read_events(await generator.complete(stream=True, **fields))
    assert (join(events), events[-1]["choices"][0]["finish_reason"]) == (whole["text"], whole["finish_reason"])
    plain = generator.raw.decode(generator.engine.answers[0][:max_tokens])
    ends = sorted((plain.find(stop) + len(stop), plain.find(stop)) for stop in stops if stop in plain)
    assert whole["text"] == (plain[: ends[0][1]] if ends else plain)
    generator.check_idle()


ERRORS = [
    (EngineUnavailable("dead"), 503, "engine_unavailable", "unavailable"),
    (DeadlineExceeded("late"), 504, "deadline_exceeded", "deadline"),
    (EngineFailure("step"), 500, "engine_failure", "failed"),
    (RuntimeError("secret"), 500, "internal_error", "failed"),
]


@pytest.mark.parametrize(("error", "status", "code", "outcome"), ERRORS)
@pytest.mark.parametrize("prompt", ["Once", ["Once", "hello"]])
async def test_an_error_before_the_first_token(
    generator: GenerationServer, error: Exception, status: int, code: str, outcome: str, prompt: Any
) -> None:
    generator.engine.error = error
    for stream in (False, True):
        response = await generator.complete(prompt, stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert "secret" not in response.text
    assert generator.count(outcome=outcome) == 2
    generator.check_idle()


@pytest.mark.parametrize(("error", "status", "code", "outcome"), ERRORS)
async def test_an_error_in_mid_stream(
    generator: GenerationServer, error: Exception, status: int, code: str, outcome: str
) -> None:
    generator.engine.error, generator.engine.error_after = error, 2
    response = await generator.complete(stream=True)
    *lines, last, end = response.text.split("\n\n")
    assert (response.status_code, len(lines), end) == (200, 2, "")
    found = orjson.loads(last.removeprefix("data: "))
    assert sorted(found["error"]) == ["code", "message", "param", "type"] and found["error"]["code"] == code
    assert "secret" not in last
    assert generator.count(outcome=outcome) == 1
    generator.check_idle()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_goes_away(
    generator: GenerationServer, path: str, has_begun: bool, is_stream: bool
) -> None:
    generator.engine.gate = asyncio.Semaphore(2 if has_begun else 0)
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "writer", "prompt": "Once", "messages": messages, "n": 2, "stream": is_stream}
    call = RawCall(generator.app, path, orjson.dumps(body))
    await wait_until(lambda: bool(generator.engine.jobs))
    await wait_until(lambda: generator.engine.jobs[0].num_steps == (2 if has_begun else 0))
    assert generator.state.models["writer"].admission.num_inputs == 2
    # The head, and what came of two steps.
    num_sent = 3 if is_stream and has_begun else 0
    await wait_until(lambda: len(call.sent) == num_sent)
    call.disconnect()
    await call.task
    assert generator.engine.num_cancelled == 1 and generator.count(outcome="cancelled") == 1
    assert len(call.sent) == num_sent, "nobody is there"
    generator.check_idle()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_is_answered_whole_counts_as_such(generator: GenerationServer, is_stream: bool) -> None:
    """The disconnect that ASGI tells of when all has been sent is no client that goes away."""
    assert (await generator.chat(stream=is_stream)).status_code == 200
    assert generator.count(outcome="ok") == generator.count() == 1
    assert generator.count("inputs_total") == 1


async def test_many_logprobs_are_written_off_the_event_loop(
    generator: GenerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 chats of 1,000 tokens with 20 others each would hold it for 10 s."""
    writers: list[threading.Thread] = []
    wrap = Envelope.wrap

    def note(*arguments: Any, **options: Any) -> bytes:
        writers.append(threading.current_thread())
        return wrap(*arguments, **options)

    monkeypatch.setattr(Envelope, "wrap", note)
    generator.say("hello " * 20)
    for fields in ({}, {"logprobs": True}, {"n": 32}, {"n": 32, "logprobs": True, "top_logprobs": 20}):
        choices = (await generator.chat(**fields)).json()["choices"]
        assert len(choices) == fields.get("n", 1)
        assert all(len(choice["logprobs"]["content"]) > 20 for choice in choices if "logprobs" in fields)
    assert (await generator.complete("Once " * 50, logprobs=1, echo=True, n=32, max_tokens=0)).is_success
    assert [writer is threading.main_thread() for writer in writers] == [True, True, True, False, False]


async def test_a_streamed_prompt_is_written_once_and_off_the_event_loop(
    generator: GenerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 tokens with 20 others each take 0.1 s, for each of 128 answers."""
    writers: list[threading.Thread] = []
    format_lists = openai_completions.format_lists

    def note(tokens: Any, *arguments: Any, **options: Any) -> Any:
        if len(tokens) > 1:
            writers.append(threading.current_thread())
            assert generator.engine.jobs[0].stream.told, "or a sibling could begin anew meanwhile"
        return format_lists(tokens, *arguments, **options)

    wrapped: list[Any] = []
    wrap = Envelope.wrap
    monkeypatch.setattr(openai_completions, "format_lists", note)
    monkeypatch.setattr(Envelope, "wrap", lambda *given, **more: wrapped.append(given[1]) or wrap(*given, **more))
    prompt = [5] * (INLINE_TOKENS + 1)
    fields = {"logprobs": 1, "echo": True, "n": 8, "max_tokens": 2}
    events = read_events(await generator.complete(prompt, stream=True, **fields))
    assert len(writers) == 1 and writers[0] is not threading.main_thread()
    assert len({id(choices[0]["logprobs"]) for choices in wrapped[::2][:8]}) == 1, "those of the first chunks"
    whole = (await generator.complete(prompt, **fields)).json()["choices"]
    assert [join(events, index) for index in range(8)] == [choice["text"] for choice in whole]
    first = next(event["choices"][0] for event in events if event["choices"][0]["index"] == 7)
    assert len(first["logprobs"]["tokens"]) == len(prompt) and first["finish_reason"] is None


async def test_the_deadline(make_generator: MakeGenerator) -> None:
    generator = make_generator(http={"generation_timeout_ms": 300.0, "default_timeout_ms": 1.0})
    generator.engine.gate = asyncio.Semaphore(2)
    response = await generator.complete(stream=True)
    assert response.status_code == 200 and "deadline_exceeded" in response.text.split("\n\n")[-2]
    response = await generator.complete(stream=True)
    assert response.status_code == 504 and "300 ms" in response.json()["error"]["message"]
    response = await generator.complete(headers={"x-request-timeout-ms": "20"})
    assert response.status_code == 504 and "20 ms" in response.json()["error"]["message"]
    # On a busy machine the last one may be over before it gets as far as the engine.
    assert generator.count(outcome="deadline") == 3 and len(generator.engine.jobs) >= 2
    assert generator.engine.num_cancelled == len(generator.engine.jobs)
    generator.check_idle()


async def test_every_sequence_takes_a_place_until_the_stream_ends(make_generator: MakeGenerator) -> None:
    generator = make_generator(max_concurrent_requests=4, max_client_batch_size=4)
    gate = generator.engine.gate = asyncio.Semaphore(0)
    first = asyncio.create_task(generator.complete(["Once", "hello"], n=2, stream=True))
    await wait_until(lambda: len(generator.engine.jobs) == 1)
    admission = generator.state.models["writer"].admission
    num_prompt_tokens = sum(map(len, generator.engine.jobs[0].prompts))
    assert (admission.num_inputs, admission.num_tokens) == (4, num_prompt_tokens + 4 * 40)
    refused = await generator.chat()
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1 and "retry-after-ms" in refused.headers
    for _ in range(100):
        gate.release()
    assert (await first).status_code == 200
    generator.check_idle()
    assert (await generator.chat()).is_success


async def test_answers_that_could_be_long_are_expected_to_be_as_long_as_others(generator: GenerationServer) -> None:
    estimator = generator.state.models["writer"].admission.estimator
    before = estimator.generated_tokens
    await generator.chat()
    assert estimator.generated_tokens < before and estimator.estimate_generated(10**6) == round(
        2 * estimator.generated_tokens
    )
    assert estimator.estimate_generated(7) == 7


@pytest.mark.parametrize("stream", [False, True])
async def test_no_engine_is_ready(generator: GenerationServer, stream: bool) -> None:
    generator.engine.reported = (EngineStatus(is_ready=False, reason="loading"),)
    response = await generator.complete(stream=stream)
    assert response.status_code == 503 and "loading" in response.json()["error"]["message"]


async def test_draining(generator: GenerationServer) -> None:
    generator.state.is_draining = True
    assert (await generator.chat(stream=True)).status_code == 503


async def test_a_slow_reader_gets_all_of_it(generator: GenerationServer) -> None:
    async with generator.client.stream(
        "POST", "/v1/completions", json={"model": "writer", "prompt": "Once", "stream": True}
    ) as response:
        assert isinstance(response, httpx.Response)
        text = (await response.aread()).decode()
    assert text.endswith("data: [DONE]\n\n")
