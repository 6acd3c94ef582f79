"""The unmodified `openai` client against a real socket: what it sends, what it makes of our answers and errors."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import openai
import pytest
import uvicorn
from conftest import CLS, EMBED_DIM, MAX_TOKENS, SEP, VOCAB, MakeServer, Server, compute_row
from fake_generator import GenerationServer

from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable
from server.http.connection import bound_connections

AnyServer = Server | GenerationServer


class Live:
    """A server in a thread. Engine and state belong to its event loop: touch them through `call`."""

    def __init__(self, server: AnyServer, port: int, running: uvicorn.Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._running = running
        self.url = f"http://127.0.0.1:{port}/v1"
        self._loop = loop

    def client(self, **options: int | dict[str, str]) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", **options)  # type: ignore[arg-type]

    def set_gate(self, event: asyncio.Event | None) -> None:
        assert isinstance(self.server, Server)
        self._loop.call_soon_threadsafe(setattr, self.server.embed, "gate", event)

    def count_connections(self) -> int:
        return len(self._running.server_state.connections)

    def later(self, wait_s: float, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, wait_s, function)

    def open_gate(self) -> None:
        assert isinstance(self.server, Server)
        gate = self.server.embed.gate
        assert gate is not None
        self._loop.call_soon_threadsafe(gate.set)


@contextmanager
def run_live(server: AnyServer) -> Iterator[Live]:
    listener = socket.create_server(("127.0.0.1", 0))
    # What is sent and not read stays in our hands, where it can be seen, and not in the kernel's.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    config = uvicorn.Config(
        server.app,
        http=bound_connections(server.state.config.server),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    running = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []
    started = threading.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        started.set()
        await running.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    try:
        yield Live(server, listener.getsockname()[1], running, loops[0])
    finally:
        running.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture
def live(make_server: MakeServer) -> Iterator[Live]:
    with run_live(make_server(max_concurrent_requests=2, max_client_batch_size=2)) as running:
        yield running


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client(max_retries=0) as opened:
        yield opened


def expected(*words: str) -> np.ndarray:
    return compute_row(np.array([CLS, *(VOCAB.index(word) for word in words), SEP]), EMBED_DIM)


def test_what_it_sends_by_default(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embedder", input=["word1", "word2 word3"])
    assert [item.index for item in answer.data] == [0, 1]
    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), expected("word1"))
    np.testing.assert_array_equal(np.float32(answer.data[1].embedding), expected("word2", "word3"))
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("embedder", 7, 7)


def test_floats(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embedder", input="word1", encoding_format="float")
    np.testing.assert_allclose(answer.data[0].embedding, expected("word1"), rtol=1e-6)


def test_token_ids_and_lists_of_them(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="embedder", input=[7, 8, 9])
    np.testing.assert_array_equal(np.float32(one.data[0].embedding), compute_row(np.array([7, 8, 9]), EMBED_DIM))
    two = client.embeddings.create(model="embedder", input=[[7, 8, 9], [10]])
    assert len(two.data) == 2 and two.usage.prompt_tokens == 4
    np.testing.assert_array_equal(np.float32(two.data[1].embedding), compute_row(np.array([10]), EMBED_DIM))


def test_dimensions(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embedder", input="word1", dimensions=4)
    row = expected("word1")[:4]
    np.testing.assert_allclose(answer.data[0].embedding, row / np.linalg.norm(row), rtol=1e-6)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedder", "classifier"]
    assert client.models.retrieve("embedder").owned_by == "padless"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_bad_requests(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="embedder", input="word1 " * (MAX_TOKENS + 1))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="nobody", input="word1")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineUnavailable("dead"), openai.InternalServerError),
        (EngineFailure("step"), openai.InternalServerError),
        (DeadlineExceeded("late"), openai.InternalServerError),
    ],
)
def test_errors_of_the_engine(live: Live, client: openai.OpenAI, error: Exception, kind: type[Exception]) -> None:
    live.server.embed.error = error
    with pytest.raises(kind):
        client.embeddings.create(model="embedder", input="word1")


def test_a_missed_deadline_is_not_retried(live: Live) -> None:
    live.server.embed.error = DeadlineExceeded("late")
    with live.client(max_retries=3) as client, pytest.raises(openai.InternalServerError):
        client.embeddings.create(model="embedder", input="word1")
    assert len(live.server.embed.calls) == 1


def test_it_waits_and_comes_back_after_429(live: Live) -> None:
    live.set_gate(asyncio.Event())
    with live.client(max_retries=5) as client:
        answers: list[openai.types.CreateEmbeddingResponse] = []
        first = threading.Thread(
            target=lambda: answers.append(client.embeddings.create(model="embedder", input=["word1", "word2"]))
        )
        first.start()
        wait_for(lambda: live.server.embed.num_running == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).embeddings.create(model="embedder", input="word3")
        assert caught.value.code == "queue_full"
        assert float(caught.value.response.headers["retry-after-ms"]) <= 1000
        second = threading.Thread(
            target=lambda: answers.append(client.embeddings.create(model="embedder", input="word3"))
        )
        second.start()
        wait_for(lambda: live.server.count(outcome="rejected") == 2)
        live.open_gate()
        first.join(20)
        second.join(20)
    assert len(answers) == 2
    np.testing.assert_array_equal(np.float32(answers[1].data[0].embedding), expected("word3"))


@pytest.mark.anyio
async def test_the_asynchronous_client(live: Live) -> None:
    async with openai.AsyncOpenAI(base_url=live.url, api_key="none", max_retries=8) as client:
        calls = [client.embeddings.create(model="embedder", input=f"word{index}") for index in range(2)]
        for index, answer in enumerate(await asyncio.gather(*calls)):
            np.testing.assert_array_equal(np.float32(answer.data[0].embedding), expected(f"word{index}"))
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="embedder", input="")


def test_closing_the_socket_frees_the_place(live: Live) -> None:
    live.set_gate(asyncio.Event())
    with live.client(max_retries=0) as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).embeddings.create(model="embedder", input="word1")
    wait_for(lambda: live.server.embed.num_cancelled == 1)
    wait_for(lambda: live.server.count(outcome="cancelled") == 1)
    assert live.server.state.models["embedder"].admission.num_inputs == 0


def wait_for(condition: object) -> None:
    """Poll from outside of the server's thread."""
    assert callable(condition)
    for _ in range(5000):
        if condition():
            return
        threading.Event().wait(0.002)
    raise AssertionError("it did not happen within 10 s")
