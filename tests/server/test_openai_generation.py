"""The unmodified `openai` client generates text over a real socket: whole, in pieces, and going away in between."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from conftest import MakeGenerator
from fake_generator import GenerationServer, find_logprob
from test_openai_client import Live, run_live, wait_for

from server.errors import DeadlineExceeded, EngineFailure

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def generator(make_generator: MakeGenerator) -> GenerationServer:
    generator = make_generator(max_concurrent_requests=4, max_client_batch_size=4)
    generator.say("hello world")
    return generator


@pytest.fixture
def live(generator: GenerationServer) -> Iterator[Live]:
    with run_live(generator) as running:
        yield running


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client(max_retries=0) as opened:
        yield opened


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="writer", messages=HELLO)
    assert answer.choices[0].message.content == "hello world" and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens > answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None and answer.usage.prompt_tokens_details.cached_tokens == 0


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt=["Once", "upon"], n=2, stop=" w", seed=1, temperature=0)
    assert [choice.text for choice in answer.choices] == ["hello"] * 4
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert client.completions.create(model="writer", prompt=[5, 6], max_tokens=1).choices[0].finish_reason == "length"


def test_chat_stream(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="writer", messages=HELLO, stream=True, stream_options=options))
    *news, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in news) == "hello world"
    assert news[0].choices[0].delta.role == "assistant" and news[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_completion_stream_of_several(client: openai.OpenAI) -> None:
    texts = ["", ""]
    for chunk in client.completions.create(model="writer", prompt="Once", n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["hello world", "hello world"]


def test_the_clients_own_way_to_collect_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="writer", messages=HELLO, logprobs=True, top_logprobs=1) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "hello world"


def test_logprobs(generator: GenerationServer, client: openai.OpenAI) -> None:
    ids = generator.engine.answers[0]
    chat = client.chat.completions.create(model="writer", messages=HELLO, logprobs=True, top_logprobs=3)
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    assert [item.logprob for item in chat.choices[0].logprobs.content] == [find_logprob(token_id) for token_id in ids]
    assert all(len(item.top_logprobs) == 3 for item in chat.choices[0].logprobs.content)
    text = client.completions.create(model="writer", prompt="Once", logprobs=1, echo=True)
    assert text.choices[0].logprobs is not None and text.choices[0].logprobs.token_logprobs is not None
    assert text.choices[0].logprobs.token_logprobs[-len(ids) :] == [find_logprob(token_id) for token_id in ids]


def test_bad_requests(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="writer", messages=HELLO, max_tokens=10_000, stream=True)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="writer", messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert caught.value.param == "tools"


def test_an_error_in_mid_stream(generator: GenerationServer, client: openai.OpenAI) -> None:
    generator.engine.error, generator.engine.error_after = EngineFailure("the step failed"), 1
    stream = client.chat.completions.create(model="writer", messages=HELLO, stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    with pytest.raises(openai.APIError, match="the step failed") as caught:
        list(stream)
    assert caught.value.code == "engine_failure"


def test_a_missed_deadline_is_not_retried(generator: GenerationServer, live: Live) -> None:
    generator.engine.error = DeadlineExceeded("late")
    with live.client(max_retries=3) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="writer", messages=HELLO)
    assert len(generator.engine.jobs) == 1


def close_gate(generator: GenerationServer, live: Live, num_steps: int) -> None:
    """From now on so many steps, and no more before `open_gate`."""
    done = asyncio.run_coroutine_threadsafe(set_gate(generator, num_steps), live._loop)
    done.result(10)


async def set_gate(generator: GenerationServer, num_steps: int) -> None:
    generator.engine.gate = asyncio.Semaphore(num_steps)


def release(generator: GenerationServer, live: Live) -> None:
    gate = generator.engine.gate
    assert gate is not None
    live._loop.call_soon_threadsafe(gate.release)


def test_each_token_is_there_before_the_next_one_is_made(generator: GenerationServer, live: Live) -> None:
    """Over the socket: nothing between engine and client collects chunks."""
    close_gate(generator, live, 1)
    generator.say("hello world", end=None)
    with live.client(max_retries=0) as client:
        stream = client.completions.create(
            model="writer", prompt="Once", stream=True, max_tokens=len(generator.engine.answers[0])
        )
        text = ""
        for number, chunk in enumerate(stream, 1):
            assert generator.engine.jobs[0].num_steps == number
            text += chunk.choices[0].text
            release(generator, live)
    assert text == "hello world"


def leave_chat_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="writer", messages=HELLO, stream=True) as stream:
        next(stream)


def leave_completion_stream(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="writer", prompt=["Once", "upon"], stream=True)
    next(stream)
    stream.close()


def give_up_waiting(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="writer", messages=HELLO)


@pytest.mark.parametrize("leave", [leave_chat_stream, leave_completion_stream, give_up_waiting])
def test_going_away_cancels(generator: GenerationServer, live: Live, leave: Callable[[openai.OpenAI], None]) -> None:
    close_gate(generator, live, 2)
    with live.client(max_retries=0) as client:
        leave(client)
    wait_for(lambda: generator.engine.num_cancelled == len(generator.engine.jobs) > 0)
    wait_for(lambda: generator.count(outcome="cancelled") == 1)
    generator.check_idle()


@pytest.mark.anyio
async def test_the_asynchronous_client(generator: GenerationServer, live: Live) -> None:
    async with openai.AsyncOpenAI(base_url=live.url, api_key="none", max_retries=5) as client:

        async def ask() -> str:
            stream = await client.chat.completions.create(model="writer", messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(ask() for _ in range(4))) == ["hello world"] * 4
        answer = await client.completions.create(model="writer", prompt="Once", max_tokens=50)
        assert answer.choices[0].text == "hello world"
        close = asyncio.create_task(asyncio.to_thread(close_gate, generator, live, 1))
        await close
        stream = await client.completions.create(model="writer", prompt="Once", stream=True)
        await stream.__anext__()
        await stream.close()
    await asyncio.to_thread(wait_for, lambda: generator.engine.num_cancelled == 1)


def test_the_bytes_of_a_stream(live: Live) -> None:
    body = {"model": "writer", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{live.url}/chat/completions", json=body) as response:
        lines = list(response.iter_lines())
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert all(line.startswith("data: {") for line in lines[:-2:2]) and not any(lines[1::2])
    assert lines[-2:] == ["data: [DONE]", ""]
