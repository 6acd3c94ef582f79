"""Nobody can stop the others: what costs much is refused before the work is done, and large bodies take turns."""

import asyncio
import gzip
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import MakeGenerator, MakeServer, RawCall, Server, build_tokenizer, wait_until
from fake_generator import GenerationServer, read_events
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from test_bad_input import check_openai_error
from test_openai_client import run_live

from server.config import ConfigError, HttpConfig
from server.config_file import load_config
from server.errors import BodyTooLarge, EngineFailure
from server.http import deadline
from server.http.api import openai_embeddings, tei, vectors
from server.http.api.openai_chat import ChatRequest
from server.http.api.openai_completions import CompletionRequest
from server.http.body import parse_body
from server.http.body_limits import (
    CONTAINER_WEIGHT,
    SMALL_BYTES,
    TEXT_WEIGHT,
    BodyBudget,
    check_items,
    strip_strings,
    weigh,
)
from server.tasks import classify
from server.wire.job import EngineStatus

pytestmark = pytest.mark.anyio

MAX_ITEMS = HttpConfig().max_body_items


def repeat(item: bytes, count: int) -> bytes:
    return b",".join([item] * count)


WORST = {
    "messages of numbers": ("/v1/chat/completions", b'{"messages":[' + repeat(b"1", 1_000_000) + b"]}"),
    "messages of objects": ("/v1/chat/completions", b'{"messages":[' + repeat(b"{}", 300_000) + b"]}"),
    "wrong biases": ("/v1/completions", b'{"prompt":"a","logit_bias":{' + repeat(b'"x":"y"', 300_000) + b"}}"),
    "a million lists": ("/v1/completions", b'{"prompt":[' + repeat(b"[]", 1_000_000) + b"]}"),
    "numbers": ("/v1/embeddings", b'{"input":[' + repeat(b"1", 1_500_000) + b"]}"),
    "members": ("/v1/embeddings", b'{"input":"a","x":{' + repeat(b'"a":1', 300_000) + b"}}"),
    "lists in a field of any kind": ("/v1/chat/completions", b'{"tools":[' + repeat(b"[]", 300_000) + b"]}"),
}


def count_parsing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what pydantic is given."""
    parsed: list[int] = []
    real = BaseModel.model_validate_json.__func__  # type: ignore[attr-defined]

    def parse(cls: type[BaseModel], body: bytes, **options: Any) -> Any:
        parsed.append(len(body))
        return real(cls, body, **options)

    monkeypatch.setattr(BaseModel, "model_validate_json", classmethod(parse))
    return parsed


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("case", WORST)
async def test_the_worst_bodies_are_not_parsed(
    server: Server, monkeypatch: pytest.MonkeyPatch, case: str, is_packed: bool
) -> None:
    path, body = WORST[case]
    parsed = count_parsing(monkeypatch)
    headers = {"content-encoding": "gzip"} if is_packed else {}
    response = await server.client.post(path, content=gzip.compress(body, 1) if is_packed else body, headers=headers)
    message = check_openai_error(response, 413, param=None, code="body_too_large")
    assert str(MAX_ITEMS) in message and "several requests" in message
    assert parsed == [] and server.app.bodies.held_bytes == 0
    assert (await server.embed_text("word1")).status_code == 200 and len(parsed) == 1


async def test_a_text_full_of_brackets_is_one_value(server: Server) -> None:
    text = '[{":,' * 200_000 + '\\"' * 10
    response = await server.embed_text(text)
    check_openai_error(response, 400, param="input", code="context_length_exceeded")


async def test_as_many_token_ids_as_clients_send_at_once(server: Server) -> None:
    response = await server.client.post("/v1/embeddings", json={"model": "embedder", "input": [[5] * 120] * 2048})
    check_openai_error(response, 400, param="input", code="context_length_exceeded")


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a,:[{}]"\\\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a,:[{"\\'), inner),
)


def weigh_value(value: Any) -> int:
    """By the rules, which the message states: items beyond the first of each list or object, texts, containers."""
    if isinstance(value, str):
        return TEXT_WEIGHT
    if not isinstance(value, dict | list):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    names = [*value] if isinstance(value, dict) else []
    num_containers = 1 + len(names)
    return max(len(value) - 1, 0) + CONTAINER_WEIGHT * num_containers + sum(map(weigh_value, [*names, *inner]))


@given(JSON, st.booleans())
def test_weights_of_any_json(value: Any, is_ascii: bool) -> None:
    weight = weigh_value(value)
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    assert weigh(strip_strings(body), quotes=1) == weight
    check_items(body, weight)
    if weight:
        with pytest.raises(BodyTooLarge):
            check_items(body, weight - 1)


def count_errors(monkeypatch: pytest.MonkeyPatch, schema: type[BaseModel], body: bytes) -> int:
    from_pydantic: list[int] = []

    def explain(schema: Any, error: Any, body: bytes) -> Exception:
        from_pydantic.append(error.error_count())
        return ValueError()

    monkeypatch.setattr("server.http.body.explain_error", explain)
    with pytest.raises(ValueError):
        parse_body(schema, body)
    return from_pydantic[0]


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        (ChatRequest, b'"messages":[%s]' % repeat(b"1", 5000)),
        (ChatRequest, b'"messages":[],"logit_bias":{%s}' % b",".join(b'"%d":"y"' % index for index in range(5000))),
        (ChatRequest, b'"messages":[],"stop":[%s]' % repeat(b"1", 5000)),
        (ChatRequest, b'"messages":[],"bad_words":[%s]' % repeat(b"1", 5000)),
        (ChatRequest, b'"messages":[],"stop_token_ids":[%s]' % repeat(b'"a"', 5000)),
        (CompletionRequest, b'"prompt":[%s]' % repeat(b'[1,"a"]', 5000)),
    ],
)
def test_errors_are_few(monkeypatch: pytest.MonkeyPatch, schema: type[BaseModel], field: bytes) -> None:
    assert count_errors(monkeypatch, schema, b"{%s}" % field) <= 5


TOO_LONG: dict[str, tuple[dict[str, Any], str]] = {
    "a stop text": ({"stop": "x" * 1001}, "1000 characters"),
    "one of several": ({"stop": ["x", "x" * 1001]}, "1000 characters"),
    "stop texts": ({"stop": ["x"] * 17}, "16 items"),
    "a bad word": ({"bad_words": ["x" * 257]}, "256 characters"),
    "biases": ({"logit_bias": {str(index): 1 for index in range(1025)}}, "1024 items"),
    "user": ({"user": "x" * 1025}, "1024 characters"),
    "model": ({"model": "x" * 4097}, "4096 characters"),
    "regex": ({"regex": "x" * 65_537}, "65536 characters"),
    "response_format": ({"response_format": {str(index): 1 for index in range(65)}}, "64 items"),
}


@pytest.mark.parametrize("case", TOO_LONG)
async def test_fields_too_long(generator: GenerationServer, case: str) -> None:
    fields, limit = TOO_LONG[case]
    response = await generator.complete(**fields)
    message = check_openai_error(response, 400, param=next(iter(fields)), code="invalid_value")
    assert "too long" in message and limit in message
    generator.check_idle()


async def test_too_many_messages_and_parts(generator: GenerationServer) -> None:
    message = {"role": "user", "content": "x"}
    response = await generator.chat([message] * 4097)
    assert "4096 items" in check_openai_error(response, 400, param="messages", code="invalid_value")
    response = await generator.chat([{"role": "user", "content": [{"type": "text", "text": "x"}] * 4097}])
    assert "4097 parts" in check_openai_error(response, 400, param="messages[0].content", code="invalid_value")


async def test_a_text_without_borders_holds_up_no_others(
    make_server: MakeServer, model_directory: Path, pool: ThreadPoolExecutor
) -> None:
    """Nowhere can it be cut, so all of it is tokenised: others are, too, on a thread beside it."""
    tokenizer = build_tokenizer(model_directory, pool)
    server = make_server(tokenizer=tokenizer)
    stuck = threading.Event()
    tokenizer._long_pool.submit(stuck.wait, 10)
    long = asyncio.create_task(server.embed_text("x" * 200_000))
    assert (await server.embed_text(["word1"] * 100)).status_code == 200
    assert not long.done()
    stuck.set()
    assert (await long).status_code == 200


class TestMemory:
    """64 KiB of each body are free; 100 kB is what there is beside."""

    @pytest.fixture
    def server(self, make_server: MakeServer) -> Server:
        return make_server(http={"max_body_mb": 0.1, "max_bodies_mb": 0.1})

    BODY = b'{"model": "embedder", "input": "word1"}' + b" " * 95_000

    async def test_what_is_held_is_counted_and_given_back(self, server: Server) -> None:
        server.embed.gate = asyncio.Event()
        bodies = server.app.bodies
        calls = [RawCall(server.app, "/v1/embeddings", self.BODY[:50_000], self.BODY[50_000:]) for _ in range(3)]
        await wait_until(lambda: server.embed.num_running == 3)
        assert bodies.held_bytes == 3 * (len(self.BODY) - SMALL_BYTES)
        fourth = RawCall(server.app, "/v1/embeddings", self.BODY)
        await fourth.task
        error = json.loads(fourth.sent[1]["body"])["error"]
        assert (fourth.status, error["code"]) == (429, "bodies_full") and "memory" in error["message"]
        assert any(name == b"retry-after" for name, _ in fourth.sent[0]["headers"])
        small = asyncio.create_task(server.embed_text("word1"))  # comes through whatever others hold
        await wait_until(lambda: server.embed.num_running == 4)
        server.embed.gate.set()
        await asyncio.gather(*(call.task for call in calls), small)
        assert [call.status for call in calls] == [200] * 3 and small.result().status_code == 200
        assert bodies.held_bytes == 0

    async def test_what_is_parsed_is_not_held_as_bytes_as_well(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bodies: list[bytes] = []
        real = deadline.read_body

        async def read(call: Any, held: Any) -> bytes:
            bodies.append(await real(call, held))
            return bodies[0]

        monkeypatch.setattr(deadline, "read_body", read)
        server.embed.gate = asyncio.Event()
        call = RawCall(server.app, "/v1/embeddings", self.BODY[:50_000], self.BODY[50_000:])
        await wait_until(lambda: server.embed.num_running == 1)
        num_references = sys.getrefcount(bodies[0])
        assert bodies == [self.BODY] and num_references == 2, "the list's and the argument"
        server.embed.gate.set()
        await call.task
        assert call.status == 200

    async def test_half_a_body_is_given_back_by_those_who_go(self, server: Server) -> None:
        call = RawCall(server.app, "/v1/embeddings", self.BODY[:80_000], is_complete=False)
        await wait_until(lambda: server.app.bodies.held_bytes == 80_000 - SMALL_BYTES)
        call.disconnect()
        await call.task
        assert server.app.bodies.held_bytes == 0

    async def test_an_announcement_holds_nothing_and_is_checked(self, server: Server) -> None:
        budget = server.app.bodies
        with budget.open() as first:
            first.expect(100_000)
            assert budget.held_bytes == 0
        response = await server.client.post(
            "/v1/embeddings",
            content=self.BODY,
            headers={"content-length": "100001", "content-type": "application/json"},
        )
        check_openai_error(response, 413, param=None, code="body_too_large")

    async def test_bombs_count_as_they_grow(self, server: Server) -> None:
        body = gzip.compress(b" " * 10_000_000)
        response = await server.client.post("/v1/embeddings", content=body, headers={"content-encoding": "gzip"})
        check_openai_error(response, 413, param=None, code="body_too_large")
        assert server.app.bodies.held_bytes == 0


async def test_large_bodies_take_turns(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are at once, no pass of the event loop parses two of them, and others have their turn."""
    server = make_server()
    passes, parsed_in = [0], []
    real = deadline.read_body

    async def read(call: Any, held: Any) -> bytes:
        body = await real(call, held)
        parsed_in.append(passes[0])
        return body

    monkeypatch.setattr(deadline, "read_body", read)

    async def pass_by() -> None:
        while len(parsed_in) < 10:
            passes[0] += 1
            await asyncio.sleep(0)

    body = b'{"model": "embedder", "input": "word1"}' + b" " * SMALL_BYTES
    calls = [RawCall(server.app, "/v1/embeddings", body) for _ in range(10)]
    await pass_by()
    await asyncio.gather(*(call.task for call in calls))
    assert min(after - before for before, after in pairwise(parsed_in)) >= 2, parsed_in
    assert {call.status for call in calls} == {200}


def test_budgets_that_contradict_each_other(tmp_path: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps(
            {"server": {"max_body_mb": 5, "max_bodies_mb": 2}, "models": [{"name": "a", "source": {"path": "b"}}]}
        )
    )
    with pytest.raises(ConfigError, match=r"max_bodies_mb \(2\) is below max_body_mb \(5\)"):
        load_config(path)
    assert BodyBudget(HttpConfig(max_body_mb=2, max_bodies_mb=5)).max_held_bytes == 5_000_000


class TestPings:
    """A stream says something now and then, also before its first token."""

    @pytest.fixture
    def generator(self, make_generator: MakeGenerator) -> GenerationServer:
        generator = make_generator(http={"sse_ping_s": 0.02})
        generator.engine.gate = asyncio.Semaphore(0)
        return generator

    def begin(self, generator: GenerationServer, **fields: Any) -> RawCall:
        body = {"model": "writer", "prompt": "Once", "max_tokens": 5, "stream": True} | fields
        return RawCall(generator.app, "/v1/completions", json.dumps(body).encode())

    @staticmethod
    def count_pings(call: RawCall) -> int:
        return sum(message.get("body") == b": ping\n\n" for message in call.sent)

    async def test_before_the_first_token_and_between(self, generator: GenerationServer) -> None:
        call = self.begin(generator)
        await wait_until(lambda: self.count_pings(call) >= 2)
        assert call.sent[0]["type"] == "http.response.start" and call.status == 200
        assert generator.engine.gate is not None
        generator.engine.gate.release()
        await wait_until(lambda: any(b"data: " in message.get("body", b"") for message in call.sent))
        before = self.count_pings(call)
        await wait_until(lambda: self.count_pings(call) >= before + 2)
        for _ in range(10):
            generator.engine.gate.release()
        await call.task
        assert call.sent[-2]["body"].endswith(b"data: [DONE]\n\n") and not call.sent[-1].get("more_body")
        num_sent = len(call.sent)
        await asyncio.sleep(0.05)
        assert len(call.sent) == num_sent
        generator.check_idle()

    async def test_not_while_there_is_news(self, make_generator: MakeGenerator) -> None:
        generator = make_generator(http={"sse_ping_s": 60})
        assert ": ping" not in (await generator.complete(stream=True)).text

    async def test_an_early_error_keeps_its_status(self, generator: GenerationServer) -> None:
        generator.engine.gate, generator.engine.error = None, EngineFailure("the step failed")
        response = await generator.complete(stream=True)
        assert response.status_code == 500 and "ping" not in response.text

    async def test_a_late_error_is_an_event(self, generator: GenerationServer) -> None:
        call = self.begin(generator)
        await wait_until(lambda: self.count_pings(call) >= 1)
        generator.engine.error = EngineFailure("the step failed")
        assert generator.engine.gate is not None
        generator.engine.gate.release()
        await call.task
        assert b"the step failed" in call.sent[-2]["body"] and call.sent[-2]["body"].startswith(b"data: {")
        generator.check_idle()

    async def test_whole_answers_have_none(self, generator: GenerationServer) -> None:
        call = self.begin(generator, stream=False)
        await asyncio.sleep(0.05)
        assert call.sent == []
        call.disconnect()
        await call.task

    async def test_events_are_read_as_before(self, make_generator: MakeGenerator) -> None:
        assert read_events(await make_generator(http={"sse_ping_s": 60}).complete(stream=True))


def test_openai_reads_streams_with_pings(make_generator: MakeGenerator) -> None:
    generator = make_generator(http={"sse_ping_s": 0.02})
    gate = asyncio.Semaphore(0)
    generator.engine.gate = gate
    generator.say("Once upon a time")
    with run_live(generator) as live, live.client(max_retries=0) as client:
        live.later(0.1, lambda: [gate.release() for _ in range(50)])
        stream = client.chat.completions.create(
            model="writer", messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Once upon a time"
        generator.engine.error = EngineFailure("the step failed")
        live.later(0.1, lambda: [gate.release() for _ in range(50)])
        with pytest.raises(openai.APIError, match="the step failed"):
            list(client.completions.create(model="writer", prompt="x", stream=True))


class TestHealth:
    async def test_a_model_lost_for_too_long(self, make_server: MakeServer) -> None:
        server = make_server(http={"unhealthy_after_s": 0.05})
        assert (await server.client.get("/health")).status_code == 200
        server.embed.reported = (EngineStatus(is_ready=False, reason="dead"),)
        assert (await server.client.get("/health")).status_code == 200
        await asyncio.sleep(0.06)
        response = await server.client.get("/health")
        assert response.status_code == 503 and "embedder" in response.json()["error"]["message"]
        assert "classifier" not in response.text
        server.state.is_draining = True
        assert (await server.client.get("/health")).status_code == 200
        server.state.is_draining = False
        server.embed.reported = (EngineStatus(is_ready=True, reason="ready"),)
        assert (await server.client.get("/health")).status_code == 200

    async def test_a_model_that_has_yet_to_start(self, make_server: MakeServer) -> None:
        server = make_server(http={"unhealthy_after_s": 0.01})
        server.embed.reported = ()
        await asyncio.sleep(0.02)
        assert (await server.client.get("/health")).status_code == 200

    @pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/embedder", "/info", "/metrics"])
    async def test_head(self, server: Server, path: str) -> None:
        assert (await server.client.head(path)).status_code == 200


async def test_large_answers_are_written_off_the_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,048 vectors of 1,024 numbers, or 77 labels each, would hold it for 0.15 s."""
    writers: list[bool] = []
    encode, rank = vectors.encode_numbers, classify.rank_labels

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            writers.append(threading.current_thread() is threading.main_thread())
            return function(*arguments)

        return noting

    monkeypatch.setattr(vectors, "encode_numbers", note(encode))
    monkeypatch.setattr(classify, "rank_labels", note(rank))
    monkeypatch.setattr(openai_embeddings, "INLINE_NUMBERS", 8)
    monkeypatch.setattr(tei, "INLINE_ITEMS", 3)
    assert (await server.embed_text(["word1"])).is_success and (await server.embed_text(["word1", "word2"])).is_success
    for inputs in ([["word1"]], [["word1"], ["word2"]]):
        assert (await server.client.post("/predict", json={"inputs": inputs})).is_success
    assert writers == [True, False, False, True, False]
