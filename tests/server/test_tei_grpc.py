"""text-embeddings-inference's services over gRPC. Each answer is REST's."""

from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import EMBEDDER as EMBEDDER_INFO
from conftest import LABELS, RANKER, SPARSE, MakeServer, Server
from grpc_client import GrpcClient, open_grpc
from test_grpc import fail

from server.http.api import tei_messages as proto

pytestmark = pytest.mark.anyio

EMBED, SPARSE_EMBED = "/tei.v1.Embed/Embed", "/tei.v1.Embed/EmbedSparse"
EMBED_ALL = "/tei.v1.Embed/EmbedAll"
PREDICT, PAIR = "/tei.v1.Predict/Predict", "/tei.v1.Predict/PredictPair"
RERANK, RERANK_STREAM = "/tei.v1.Rerank/Rerank", "/tei.v1.Rerank/RerankStream"
TOKENIZE, DECODE, INFO = "/tei.v1.Tokenize/Tokenize", "/tei.v1.Tokenize/Decode", "/tei.v1.Info/Info"
LONG = "word1 " * 40
CLASSIFIER = (("model", "classifier"),)
EMBEDDER = (("model", "embedder"),)


async def post(server: Server, path: str, **body: Any) -> Any:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def ranking(make_server: MakeServer) -> Server:
    return make_server(others={"ranker": RANKER})


async def test_embed(server: Server) -> None:
    asked = proto.EmbedRequest("word1 word2", dimensions=4, truncation_direction=1, truncate=True)
    async with open_grpc(server) as client:
        answer = await client.ask(EMBED, asked, proto.EmbedResponse)
    (row,) = await post(server, "/embed", inputs="word1 word2", dimensions=4)
    assert answer.embeddings.tolist() == np.array(row, np.float32).tolist()
    metadata = answer.metadata
    assert metadata is not None and (metadata.compute_chars, metadata.compute_tokens) == (11, 4)
    assert metadata.queue_time_ns == 1_000_000 and metadata.total_time_ns > metadata.tokenization_time_ns > 0


async def test_texts_are_cut_where_that_is_asked(server: Server) -> None:
    async with open_grpc(server) as client:
        await client.ask(EMBED, proto.EmbedRequest(LONG, truncate=True), proto.EmbedResponse)
        error = await fail(client.start(EMBED, proto.EmbedRequest(LONG)))
        other = await fail(client.start(EMBED, proto.EmbedRequest("word1", truncation_direction=2)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "set truncate to true" in (error.details() or "")
    assert "truncation_direction must be 0 (right) or 1 (left), not 2" in (other.details() or "")


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (proto.EmbedRequest(""), grpc.StatusCode.INVALID_ARGUMENT, "inputs must not be empty"),
        (proto.EmbedRequest("word1", dimensions=0), grpc.StatusCode.INVALID_ARGUMENT, "dimensions"),
        (proto.EmbedRequest("word1", dimensions=9), grpc.StatusCode.INVALID_ARGUMENT, "dimensions"),
        (proto.EmbedRequest("word1", prompt_name="none"), grpc.StatusCode.INVALID_ARGUMENT, "prompt_name"),
        (proto.EmbedRequest("word1", normalize=False), grpc.StatusCode.INVALID_ARGUMENT, "normalize"),
    ],
)
async def test_bad_requests(server: Server, message: proto.EmbedRequest, code: Any, words: str) -> None:
    async with open_grpc(server) as client:
        error = await fail(client.start(EMBED, message))
    assert error.code() == code and words in (error.details() or "")


async def test_models_are_named_in_the_metadata(make_server: MakeServer) -> None:
    server = make_server(others={"ranker": RANKER})
    async with open_grpc(server) as client:
        error = await fail(client.start(PREDICT, proto.PredictRequest("word1")))
        assert "name one of them in 'model': classifier, ranker" in (error.details() or "")
        await client.ask(PREDICT, proto.PredictRequest("word1"), proto.PredictResponse, metadata=CLASSIFIER)
        wrong = await fail(client.start(PREDICT, proto.PredictRequest("word1"), metadata=EMBEDDER))
        assert wrong.code() == grpc.StatusCode.FAILED_PRECONDITION and "its task is" in (wrong.details() or "")
        unknown = await fail(client.start(PREDICT, proto.PredictRequest("word1"), metadata=(("model", "x"),)))
        assert unknown.code() == grpc.StatusCode.NOT_FOUND


async def test_embed_sparse(make_server: MakeServer) -> None:
    server = make_server(others={"splade": SPARSE})
    async with open_grpc(server) as client:
        answer = await client.ask(SPARSE_EMBED, proto.EmbedSparseRequest("word1 word2"), proto.EmbedSparseResponse)
    (weights,) = await post(server, "/embed_sparse", inputs="word1 word2")
    assert [each.index for each in answer.sparse_embeddings] == [each["index"] for each in weights]
    assert [each.value for each in answer.sparse_embeddings] == [each["value"] for each in weights]


class TestEmbedAll:
    @pytest.fixture
    def server(self, make_server: MakeServer) -> Server:
        return make_server(
            heads={"embedder": [replace(EMBEDDER_INFO, task="token_embed", head="tokens", normalize=False)]}
        )

    async def test_rows_are_rests(self, server: Server) -> None:
        async with open_grpc(server) as client:
            answer = await client.ask(EMBED_ALL, proto.EmbedAllRequest("word1 word2"), proto.EmbedAllResponse)
        (rows,) = await post(server, "/embed_all", inputs="word1 word2")
        found = [each.embeddings.tolist() for each in answer.token_embeddings]
        assert found == np.array(rows, np.float32).tolist()
        metadata = answer.metadata
        assert metadata is not None and (metadata.compute_chars, metadata.compute_tokens) == (11, 4)

    async def test_long_texts_of_a_stream(self, server: Server) -> None:
        messages = [proto.EmbedAllRequest(LONG, truncate=True, truncation_direction=1), proto.EmbedAllRequest("word1")]
        async with open_grpc(server) as client:
            answers = await client.ask_each(EMBED_ALL + "Stream", messages, proto.EmbedAllResponse)
            error = await fail(client.start(EMBED_ALL, proto.EmbedAllRequest(LONG)))
        assert [len(answer.token_embeddings) for answer in answers] == [16, 3]
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "or set truncate" in (error.details() or "")

    async def test_others_have_no_tokens_rows(self, server: Server) -> None:
        async with open_grpc(server) as client:
            error = await fail(client.start(EMBED_ALL, proto.EmbedAllRequest("word1"), metadata=CLASSIFIER))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "its task is classify" in (error.details() or "")


async def test_predict(server: Server) -> None:
    async with open_grpc(server) as client:
        answer = await client.ask(PREDICT, proto.PredictRequest("word1", raw_scores=True), proto.PredictResponse)
        pair = await client.ask(PAIR, proto.PredictPairRequest(["word1", "word2"]), proto.PredictResponse)
        error = await fail(client.start(PAIR, proto.PredictPairRequest(["word1"])))
    labels = await post(server, "/predict", inputs="word1", raw_scores=True)
    assert [each.label for each in answer.predictions] == [each["label"] for each in labels]
    assert [each.score for each in answer.predictions] == pytest.approx([each["score"] for each in labels])
    assert sum(each.score for each in pair.predictions) == pytest.approx(1)
    assert {each.label for each in pair.predictions} == set(LABELS.values())
    assert "inputs must be two texts, not 1" in (error.details() or "")


class TestRerank:
    TEXTS = ("word2", "word3", "word4")

    async def rank(self, client: GrpcClient, **fields: Any) -> list[proto.Rank]:
        asked = proto.RerankRequest("word1", list(self.TEXTS), **fields)
        return (await client.ask(RERANK, asked, proto.RerankResponse)).ranks

    async def test_ranks_are_rests(self, ranking: Server) -> None:
        async with open_grpc(ranking) as client:
            ranks = await self.rank(client, return_text=True)
        expected = await post(ranking, "/rerank", query="word1", texts=self.TEXTS, return_text=True)
        assert [(each.index, each.text) for each in ranks] == [(each["index"], each["text"]) for each in expected]
        assert [each.score for each in ranks] == pytest.approx([each["score"] for each in expected])

    async def test_a_stream_of_texts_is_one_call(self, ranking: Server) -> None:
        items = [proto.RerankStreamRequest("word1", text, raw_scores=True) for text in self.TEXTS]
        async with open_grpc(ranking) as client:
            streamed = await client.ask_all(RERANK_STREAM, items, proto.RerankResponse)
            ranks = await self.rank(client, raw_scores=True)
        assert [(each.index, each.score, each.text) for each in streamed.ranks] == [
            (each.index, each.score, None) for each in ranks
        ]
        assert ranking.count(route=RERANK_STREAM) == 1

    async def test_each_text_of_a_stream_has_its_query(self, ranking: Server) -> None:
        items = [proto.RerankStreamRequest(query, "word9") for query in ("word1", "word2")]
        async with open_grpc(ranking) as client:
            await client.ask_all(RERANK_STREAM, items, proto.RerankResponse)
        first, second = ranking.engines["ranker"].calls[0]
        assert first[1] != second[1] and first[2:] == second[2:]

    async def test_a_stream_of_nothing(self, ranking: Server) -> None:
        async with open_grpc(ranking) as client:
            error = await fail(client.ask_all(RERANK_STREAM, [], proto.RerankResponse))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "must not be empty" in (error.details() or "")


async def test_tokenize_and_back(server: Server) -> None:
    async with open_grpc(server) as client:
        asked = proto.EncodeRequest("word1 word2", add_special_tokens=True)
        tokens = (await client.ask(TOKENIZE, asked, proto.EncodeResponse, metadata=EMBEDDER)).tokens
        ids = np.array([token.id for token in tokens])
        decode = proto.DecodeRequest(ids, skip_special_tokens=True)
        text = (await client.ask(DECODE, decode, proto.DecodeResponse, metadata=EMBEDDER)).text
        streamed = await client.ask_each(
            "/tei.v1.Tokenize/DecodeStream", [decode, decode], proto.DecodeResponse, metadata=EMBEDDER
        )
    (expected,) = await post(server, "/tokenize", inputs="word1 word2", model="embedder")
    assert [
        {"id": token.id, "text": token.text, "special": token.special, "start": token.start, "stop": token.stop}
        for token in tokens
    ] == expected
    assert text == "word1 word2" and [each.text for each in streamed] == [text, text]


async def test_info(server: Server) -> None:
    async with open_grpc(server) as client:
        first = await client.ask(INFO, b"", proto.InfoResponse)
        named = await client.ask(INFO, b"", proto.InfoResponse, metadata=CLASSIFIER)
    assert (first.model_type, named.model_type) == (0, 1)
    assert first.max_input_length == 16 and first.max_batch_tokens == 4096 and first.model_sha is None


async def test_info_has_a_type_for_three_kinds_of_models_only(make_server: MakeServer) -> None:
    server = make_server(others={"judge": replace(RANKER, answer_token_ids=(7, 8)), "splade": SPARSE})
    async with open_grpc(server) as client:
        judge = await client.ask(INFO, b"", proto.InfoResponse, metadata=(("model", "judge"),))
        error = await fail(client.start(INFO, b"", metadata=(("model", "splade"),)))
    assert judge.model_type == 2
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "ask GET /info" in (error.details() or "")
