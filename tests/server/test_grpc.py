"""gRPC goes through the chain that HTTP does: keys, limits, deadlines, drain, metrics. With gRPC's own client."""

import asyncio
import json
import logging
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import EMBED_DIM, MakeServer, Server, wait_until
from grpc_client import INFER, GrpcClient, open_grpc, parse
from test_keys import SECRET, lock

from server.errors import EngineFailure, Kind, Overloaded
from server.http import grpc_server
from server.http.api import grpc_health, oip_messages
from server.http.api import tei_messages as tei
from server.http.api.oip_messages import ModelInferRequest, ModelInferResponse, Tensor, TensorContents
from server.http.grpc_server import RPCS, build_grpc_server, open_port
from server.http.protobuf import write
from server.http.rpc import CODES
from server.processes.grpc_process import serve_grpc

pytestmark = pytest.mark.anyio

EMBED, STREAM = "/tei.v1.Embed/Embed", "/tei.v1.Embed/EmbedStream"
LIVE, CHECK = "/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Check"


def ask_texts(*texts: str) -> ModelInferRequest:
    contents = TensorContents(bytes_contents=[text.encode() for text in texts])
    return ModelInferRequest("embedder", inputs=[Tensor("text", "BYTES", np.array([len(texts)]), contents=contents)])


async def infer(client: GrpcClient, *texts: str, **options: Any) -> ModelInferResponse:
    return await client.ask(INFER, ask_texts(*texts), ModelInferResponse, **options)


async def fail(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def read_metadata(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())


def test_every_kind_of_error_has_a_status() -> None:
    """Those without are the client's mistakes."""
    assert all(hasattr(grpc.StatusCode, code) for code in CODES.values())
    assert set(Kind) - CODES.keys() == {
        *(Kind.INVALID_BODY, Kind.INVALID_VALUE, Kind.EMPTY_INPUT, Kind.TOO_LONG, Kind.UNSUPPORTED_ENCODING)
    }


async def test_an_answer_its_id_and_what_is_counted(make_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = make_server(http={"access_log": "all"})
    caplog.set_level(logging.INFO, "padless.access")
    async with open_grpc(server) as client:
        call = client.start(INFER, ask_texts("word1"), metadata=(("x-request-id", "mine"),))
        await call
        assert dict(await call.trailing_metadata()) == {"x-request-id": "mine"}
    assert server.count(route=INFER, model="embedder", outcome="ok") == 1
    line = json.loads(caplog.messages[-1])
    assert line["path"] == INFER and line["status"] == 200 and line["num_tokens"] == 3 and line["request_id"] == "mine"


class TestKeys:
    async def test_only_known_keys_and_the_probes(self, server: Server) -> None:
        lock(server, {})
        async with open_grpc(server) as client:
            error = await fail(infer(client, "word1"))
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED and "an API key is needed" in (error.details() or "")
            bearer = (("authorization", f"Bearer {SECRET}"),)
            assert (await infer(client, "word1", metadata=bearer)).model_name == "embedder"
            assert (await client.ask(LIVE, b"", oip_messages.Truth)).is_true
            assert (await client.ask(CHECK, b"", grpc_health.HealthCheckResponse)).status == grpc_health.SERVING

    async def test_what_a_key_does_over_http_counts_here(self, server: Server) -> None:
        lock(server, {"requests_per_minute": 1})
        await server.embed_text("word1", headers={"authorization": f"Bearer {SECRET}"})
        async with open_grpc(server) as client:
            error = await fail(infer(client, "word1", metadata=(("authorization", f"Bearer {SECRET}"),)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "requests per minute" in (error.details() or "")
        assert 50_000 < int(read_metadata(error)["grpc-retry-pushback-ms"]) <= 60_000

    async def test_models_of_others_are_not_shown(self, server: Server) -> None:
        lock(server, {"models": ["classifier"]})
        async with open_grpc(server) as client:
            error = await fail(infer(client, "word1", metadata=(("x-api-key", SECRET),)))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED


class TestLimits:
    async def test_a_message_over_the_limit(self, make_server: MakeServer) -> None:
        server = make_server(http={"max_body_mb": 0.1})
        async with open_grpc(server) as client:
            assert (await fail(infer(client, "a" * 110_000))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            error = await fail(infer(client, "a" * 110_000, compression=grpc.Compression.Gzip))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_a_stream_over_the_limit(self, make_server: MakeServer) -> None:
        server = make_server(http={"max_body_mb": 0.1})
        texts = [tei.RerankStreamRequest("word1", "a" * 1000)] * 200
        async with open_grpc(server) as client:
            error = await fail(client.ask_all("/tei.v1.Rerank/RerankStream", texts, tei.RerankResponse))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "over the limit" in (error.details() or "")

    async def test_too_many_fields(self, make_server: MakeServer) -> None:
        server = make_server(http={"max_body_items": 1000})
        async with open_grpc(server) as client:
            error = await fail(infer(client, *["word1"] * 200))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "1000 in all" in (error.details() or "")

    async def test_too_many_packed_numbers(self, make_server: MakeServer) -> None:
        server = make_server(http={"max_body_items": 1000})
        contents = TensorContents(int64_contents=np.ones(1000, np.int64))
        ids = Tensor("input_ids", "INT64", np.array([100, 10]), contents=contents)
        async with open_grpc(server) as client:
            error = await fail(client.start(INFER, ModelInferRequest("embedder", inputs=[ids])))
            other = await fail(client.start("/tei.v1.Tokenize/Decode", tei.DecodeRequest(np.ones(1000, np.int64))))
        assert error.code() == other.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not server.embed.jobs

    async def test_large_messages_are_parsed_in_turn(self, server: Server) -> None:
        async with open_grpc(server) as client:
            async with server.app.bodies.turn:
                large = asyncio.ensure_future(infer(client, *["word1 word2"] * 2048, "a" * 70_000))
                await wait_until(lambda: server.app.bodies.held_bytes > 0)
                await infer(client, "word1")
                assert not large.done()
            assert (await fail(large)).code() == grpc.StatusCode.INVALID_ARGUMENT

    async def test_memory_is_shared_with_http(self, make_server: MakeServer) -> None:
        server = make_server()
        server.app.bodies.held_bytes = server.app.bodies.max_held_bytes
        async with open_grpc(server) as client:
            error = await fail(infer(client, "a" * 100_000))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "fill the memory" in (error.details() or "")

    async def test_a_full_queue_says_when_to_come_back(self, server: Server) -> None:
        server.embed.error = Overloaded("full", retry_after_s=0.25)
        async with open_grpc(server) as client:
            error = await fail(infer(client, "word1"))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert read_metadata(error)["grpc-retry-pushback-ms"] == "250"
        assert server.count(route=INFER, outcome="rejected") == 1


class TestTime:
    async def test_the_clients_deadline_is_the_jobs(self, server: Server) -> None:
        async with open_grpc(server) as client:
            await infer(client, "word1", timeout=5)
            await infer(client, "word1")
        first, second = server.embed.jobs
        assert 4 < first.timeout_s < 5 and 29 < second.timeout_s < 30

    async def test_past_the_deadline_the_work_is_cancelled(self, server: Server) -> None:
        server.embed.gate = asyncio.Event()
        async with open_grpc(server) as client:
            assert (await fail(infer(client, "word1", timeout=0.1))).code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await wait_until(lambda: server.embed.num_cancelled == 1)
        assert server.count(route=INFER, outcome="ok") == 0 and server.count(route=INFER) == 1

    async def test_a_client_that_goes_away(self, server: Server) -> None:
        server.embed.gate = asyncio.Event()
        async with open_grpc(server) as client:
            call = client.start(INFER, ask_texts("word1"))
            await wait_until(lambda: server.embed.num_running == 1)
            call.cancel()
            await wait_until(lambda: server.embed.num_cancelled == 1)
            await wait_until(lambda: server.count(route=INFER, outcome="cancelled") == 1)
        assert server.state.models["embedder"].admission.num_inputs == 0


class TestStreams:
    async def test_answers_come_in_the_order_of_the_messages(self, server: Server) -> None:
        texts = [f"word{index % 60} word1" for index in range(150)]
        async with open_grpc(server) as client:
            answers = await client.ask_each(STREAM, [tei.EmbedRequest(text) for text in texts], tei.EmbedResponse)
            alone = [await client.ask(EMBED, tei.EmbedRequest(text), tei.EmbedResponse) for text in texts[:3]]
        assert [len(answer.embeddings) for answer in answers] == [EMBED_DIM] * 150
        assert all((one.embeddings == other.embeddings).all() for one, other in zip(answers, alone, strict=False))
        assert server.count(route=STREAM, outcome="ok") == 150

    async def test_no_more_than_a_key_allows_are_under_way(self, server: Server) -> None:
        lock(server, {"concurrent_requests": 2})
        server.embed.gate = asyncio.Event()
        metadata = (("x-api-key", SECRET),)
        texts = [tei.EmbedRequest(f"word{index}") for index in range(40)]
        async with open_grpc(server) as client:
            asking = asyncio.create_task(client.ask_each(STREAM, texts, tei.EmbedResponse, metadata=metadata))
            await wait_until(lambda: server.embed.num_running == 2)
            error = await fail(infer(client, "word1", metadata=metadata))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            server.embed.gate.set()
            assert len(await asking) == 40
        assert server.count(route=STREAM, outcome="ok") == 40 == server.count(route=STREAM)

    async def test_places_are_waited_for_while_others_of_the_stream_run(self, make_server: MakeServer) -> None:
        server = make_server(max_concurrent_requests=3, max_client_batch_size=3)
        texts = [tei.EmbedRequest(f"word{index}") for index in range(40)]
        async with open_grpc(server) as client:
            answers = await client.ask_each(STREAM, texts, tei.EmbedResponse)
            alone = await client.ask(EMBED, texts[-1], tei.EmbedResponse)
            assert len(answers) == 40 and (answers[-1].embeddings == alone.embeddings).all()
            with server.state.models["embedder"].admission.admit(3, 0, deadline_s=9e9, tokens_per_s=0.0):
                error = await fail(client.ask_each(STREAM, texts[:2], tei.EmbedResponse))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "the queue is full" in (error.details() or "")

    async def test_the_first_error_ends_it(self, server: Server) -> None:
        async with open_grpc(server) as client:
            call = client.channel.stream_stream(STREAM)()
            for text in ("word1", "word2", ""):  # a client that still writes may not get to see the status
                await call.write(write(tei.EmbedRequest(text)))
            assert await call.read() and await call.read()
            error = await fail(call.read())
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "must not be empty" in (error.details() or "")
        await wait_until(lambda: server.embed.num_running == 0)
        assert server.state.models["embedder"].admission.num_inputs == 0

    async def test_a_client_that_goes_away(self, server: Server) -> None:
        server.embed.gate = asyncio.Event()
        async with open_grpc(server) as client:
            asking = asyncio.create_task(client.ask_each(STREAM, [tei.EmbedRequest("word1")] * 3, tei.EmbedResponse))
            await wait_until(lambda: server.embed.num_running == 3)
            asking.cancel()
            await wait_until(lambda: server.embed.num_cancelled == 3)


async def test_while_the_server_shuts_down(server: Server) -> None:
    server.embed.gate = asyncio.Event()
    async with open_grpc(server) as client:
        call = client.start(INFER, ask_texts("word1"))
        await wait_until(lambda: server.embed.num_running == 1)
        server.state.is_draining = True
        error = await fail(infer(client, "word1"))
        assert error.code() == grpc.StatusCode.UNAVAILABLE and "shutting down" in (error.details() or "")
        assert read_metadata(error)["grpc-retry-pushback-ms"] == "1000"
        assert (await client.ask(CHECK, b"", grpc_health.HealthCheckResponse)).status == grpc_health.NOT_SERVING
        server.embed.gate.set()
        assert await call


async def test_who_watches_hears_of_changes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, and without being a call each time that nothing has changed."""
    monkeypatch.setattr(grpc_server, "WATCH_PERIOD_S", 0.001)
    lock(server, {})
    watch = "/grpc.health.v1.Health/Watch"
    async with open_grpc(server) as client:
        call = client.channel.unary_stream(watch)(b"")
        statuses = []
        for is_draining in (True, False, True):
            statuses.append(parse(grpc_health.HealthCheckResponse, await call.read()).status)
            await asyncio.sleep(0.02)
            server.state.is_draining = is_draining
        call.cancel()
    assert statuses == [grpc_health.SERVING, grpc_health.NOT_SERVING, grpc_health.SERVING]
    assert server.count(route=watch) <= 4


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (EngineFailure("the step failed"), grpc.StatusCode.INTERNAL, "the step failed"),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL, "internal error"),
    ],
)
async def test_failures(server: Server, error: Exception, code: grpc.StatusCode, words: str) -> None:
    server.embed.error = error
    async with open_grpc(server) as client:
        found = await fail(infer(client, "word1"))
    assert found.code() == code and words in (found.details() or "") and "secret" not in (found.details() or "")


async def test_what_is_no_message_and_what_is_no_method(server: Server) -> None:
    async with open_grpc(server) as client:
        error = await fail(client.start(INFER, b"\xff"))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "cannot be parsed" in (error.details() or "")
        error = await fail(client.start("/inference.GRPCInferenceService/TraceSetting"))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_methods_are_not_there_for_http(server: Server) -> None:
    assert (await server.client.post(INFER, content=b"{}")).status_code == 404
    assert len({rpc.route.path for rpc in RPCS}) == len(RPCS)


async def test_http_processes_share_the_port(server: Server) -> None:
    """And one that ends lets the others have it."""
    http = server.state.config.server
    first = build_grpc_server(server.app)
    port = open_port(first, http.model_copy(update={"grpc_port": 0}))
    await first.start()
    configured = http.model_copy(update={"grpc_port": port})
    server.state.config = server.state.config.model_copy(update={"server": configured})
    async with serve_grpc(server.app), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await first.stop(0)
        assert (await infer(GrpcClient(channel), "word1", wait_for_ready=True)).model_name == "embedder"
