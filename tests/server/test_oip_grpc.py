"""The Open Inference Protocol over gRPC. The requests in bytes are what tritonclient 2.73 sends."""

from typing import Any

import grpc
import numpy as np
import pytest
from conftest import LABELS, Server, compute_row
from grpc_client import INFER, open_grpc, parse
from test_grpc import fail

from server.http.api.oip_messages import (
    ModelConfigResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadata,
    ModelStatisticsResponse,
    ModelStreamInferResponse,
    NamedModel,
    NamedParameter,
    Parameter,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RequestedOutput,
    ServerMetadata,
    Tensor,
    TensorContents,
    Truth,
)
from server.http.protobuf import write

pytestmark = pytest.mark.anyio

SERVICE = "/inference.GRPCInferenceService"
TEXTS = (
    b'\n\x08embedder\x1a\x017"\x10\n\x07timeout\x12\x05\x10\xc0\x96\xb1\x02*\x10\n\x04text\x12\x05BYTES\x1a\x01\x022\x0c\n'
    b"\nembeddings:\x18\x0b\0\0\0word1 word2\x05\0\0\0word3"
)
"""Two texts, the id 7, a timeout of 5 s, and the output by its name."""
IDS = (
    b"\n\nclassifier\x12\x011*\x16\n\tinput_ids\x12\x05INT64\x1a\x02\x02\x03*\x1b\n\x0eattention_mask\x12\x05INT64\x1a"
    b"\x02\x02\x03:0"
    + np.array([2, 5, 3, 2, 6, 0], "<i8").tobytes()
    + b":0"
    + np.array([1, 1, 1, 1, 1, 0], "<i8").tobytes()
)
"""Two rows of ids, the second of which ends with padding."""


def ids(**contents: Any) -> Tensor:
    return typed("INT64", **contents)


def typed(datatype: str, **contents: Any) -> Tensor:
    return Tensor("input_ids", datatype, np.array([1, 2]), contents=TensorContents(**contents))


async def test_tritonclients_texts(server: Server) -> None:
    async with open_grpc(server) as client:
        answer = await client.ask(INFER, TEXTS, ModelInferResponse)
    (output,), (raw,) = answer.outputs, answer.raw_output_contents
    assert (output.name, output.datatype, output.shape.tolist()) == ("embeddings", "FP32", [2, 8])
    assert (answer.model_name, answer.model_version, answer.id) == ("embedder", "1", "7")
    rows = np.frombuffer(raw, "<f4").reshape(2, 8)
    assert (rows[1] == compute_row(np.array(server.embed.calls[0][1]), 8)).all()
    assert 4 < server.embed.jobs[0].timeout_s < 5


async def test_tritonclients_ids(server: Server) -> None:
    async with open_grpc(server) as client:
        answer = await client.ask(INFER, IDS, ModelInferResponse)
    assert answer.outputs[0].shape.tolist() == [2, len(LABELS)]
    assert server.classify.calls == [[[2, 5, 3], [2, 6]]]


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("INT64", {"int64_contents": np.array([5, 6])}),
        ("INT32", {"int_contents": np.array([5, 6])}),
        ("UINT8", {"uint_contents": np.array([5, 6])}),
        ("UINT64", {"uint64_contents": np.array([5, 6])}),
    ],
)
async def test_typed_contents_are_answered_so(server: Server, datatype: str, contents: dict[str, Any]) -> None:
    tensor = typed(datatype, **contents)
    async with open_grpc(server) as client:
        answer = await client.ask(INFER, ModelInferRequest("embedder", inputs=[tensor]), ModelInferResponse)
    assert server.embed.calls == [[[5, 6]]] and not answer.raw_output_contents
    contents = answer.outputs[0].contents
    assert contents is not None and (contents.fp32_contents == compute_row(np.array([5, 6]), 8)).all()


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (ModelInferRequest("other"), grpc.StatusCode.NOT_FOUND, "model 'other' does not exist"),
        (ModelInferRequest("embedder", "2"), grpc.StatusCode.NOT_FOUND, "has no version '2'"),
        (ModelInferRequest("embedder"), grpc.StatusCode.INVALID_ARGUMENT, "inputs must be 'text' alone"),
        (
            ModelInferRequest("embedder", inputs=[ids()], raw_input_contents=[memoryview(b""), memoryview(b"")]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "raw_input_contents must have one entry for each of the 1 inputs, or none; it has 2",
        ),
        (
            ModelInferRequest("embedder", inputs=[ids()], raw_input_contents=[memoryview(b"")]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "either contents or an entry of raw_input_contents",
        ),
        (
            ModelInferRequest("embedder", inputs=[ids(int64_contents=np.array([1]))]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "input_ids has 1 elements, and [1, 2] are 2",
        ),
        (
            ModelInferRequest("embedder", inputs=[typed("UINT8", uint_contents=np.array([5, 261]))]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "input_ids must be UINT8, from 0 to 255",
        ),
        (
            ModelInferRequest("embedder", inputs=[Tensor("input_ids", "FP32", np.array([1, 1]))]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "inputs[0]: should be 'BOOL'",
        ),
        (
            ModelInferRequest("embedder", inputs=[Tensor("text", "BYTES", np.array([-1]))]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "inputs[0][0]",
        ),
        (
            ModelInferRequest("embedder", inputs=[ids()], outputs=[RequestedOutput("logits")]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "outputs: there is no 'logits'",
        ),
        (
            ModelInferRequest(
                "embedder", parameters=[NamedParameter("timeout", Parameter(string_param="1"))], inputs=[ids()]
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "parameters: timeout must be a whole number",
        ),
    ],
)
async def test_bad_requests(server: Server, request_: ModelInferRequest, code: Any, words: str) -> None:
    async with open_grpc(server) as client:
        error = await fail(client.start(INFER, request_))
    assert error.code() == code and words in (error.details() or "")


async def test_what_the_server_is(server: Server) -> None:
    async with open_grpc(server) as client:
        for method in ("ServerLive", "ServerReady"):
            assert (await client.ask(f"{SERVICE}/{method}", b"", Truth)).is_true
        assert (await client.ask(f"{SERVICE}/ModelReady", NamedModel("embedder"), Truth)).is_true
        assert "statistics" in (await client.ask(f"{SERVICE}/ServerMetadata", b"", ServerMetadata)).extensions
        error = await fail(client.start(f"{SERVICE}/ModelReady", NamedModel("other")))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        server.state.is_draining = True
        assert not (await client.ask(f"{SERVICE}/ServerReady", b"", Truth)).is_true
        assert not (await client.ask(f"{SERVICE}/ModelReady", NamedModel("embedder"), Truth)).is_true


async def test_what_a_model_is(server: Server) -> None:
    async with open_grpc(server) as client:
        facts = await client.ask(f"{SERVICE}/ModelMetadata", NamedModel("classifier", "1"), ModelMetadata)
        config = (await client.ask(f"{SERVICE}/ModelConfig", NamedModel("classifier"), ModelConfigResponse)).config
    assert [tensor.name for tensor in facts.inputs] == ["text", "input_ids", "attention_mask", "token_type_ids"]
    assert facts.outputs[0].shape.tolist() == [-1, len(LABELS)]
    assert config is not None and config.max_batch_size == 2048 and config.backend == "padless"
    assert [(tensor.name, tensor.data_type, tensor.dims.tolist()) for tensor in config.input][:2] == [
        ("text", 13, [1]),
        ("input_ids", 9, [-1]),
    ]
    assert [(tensor.name, tensor.data_type, tensor.dims.tolist()) for tensor in config.output] == [("logits", 11, [3])]


async def test_statistics_and_the_repository(server: Server) -> None:
    async with open_grpc(server) as client:
        await client.ask(INFER, TEXTS, ModelInferResponse)
        found = await client.ask(f"{SERVICE}/ModelStatistics", NamedModel("embedder"), ModelStatisticsResponse)
        everything = await client.ask(f"{SERVICE}/ModelStatistics", b"", ModelStatisticsResponse)
        index = await client.ask(f"{SERVICE}/RepositoryIndex", RepositoryIndexRequest(), RepositoryIndexResponse)
        error = await fail(client.start(f"{SERVICE}/RepositoryModelLoad"))
    (stats,) = found.model_stats
    times = stats.inference_stats
    assert stats.inference_count == 2 and times is not None and times.success is not None and times.success.count == 1
    assert times.queue is not None and times.queue.ns == 1_000_000
    assert times.compute_output is not None and times.compute_output.count == 1 and times.cache_hit is not None
    assert [each.name for each in everything.model_stats] == ["embedder", "classifier"]
    assert [(model.name, model.state) for model in index.models] == [("embedder", "READY"), ("classifier", "READY")]
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "cannot be loaded" in (error.details() or "")


async def test_streams_go_on_behind_errors(server: Server) -> None:
    """Each answer or error has the id of its message, in their order."""
    empty = ModelInferRequest("embedder", id="empty", inputs=[Tensor("text", "BYTES", np.array([0]))])
    wrong = ModelInferRequest("nobody", id="wrong")
    messages = [TEXTS, write(empty), write(wrong), b"\xff", TEXTS]
    async with open_grpc(server) as client:
        alone = await client.ask(INFER, TEXTS, ModelInferResponse)
        call = client.channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter(messages))
        found = [parse(ModelStreamInferResponse, raw) async for raw in call]
    told = [(each.error_message, each.infer_response) for each in found]
    assert [answer.id for _, answer in told if answer is not None] == ["7", "empty", "wrong", "", "7"]
    for error, answer in (told[0], told[4]):
        assert error == "" and answer is not None and answer.raw_output_contents == alone.raw_output_contents
    for (error, answer), words in zip(told[1:4], ("must not be empty", "'nobody'", "cannot be parsed"), strict=True):
        assert words in error and answer is not None and not answer.outputs
    assert server.count(route=f"{SERVICE}/ModelStreamInfer", outcome="ok") == 2
