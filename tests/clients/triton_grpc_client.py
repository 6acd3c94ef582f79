"""Drives a server with Triton's gRPC client, and with gRPC's own for the health check."""

import json
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

given = json.loads(sys.argv[2])
client = triton.InferenceServerClient(given["address"])
model = given["model"]


def list_inputs(**arrays: np.ndarray) -> list[triton.InferInput]:
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "INT64")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def infer(name: str, output: str, **arrays: np.ndarray) -> list[list[float]]:
    wanted = [triton.InferRequestedOutput(output)]
    answer = client.infer(name, list_inputs(**arrays), outputs=wanted, request_id="7", client_timeout=60.0)
    assert answer.get_response().id == "7"
    return answer.as_numpy(output).tolist()


def infer_later(texts: np.ndarray) -> list[list[float]]:
    answers: queue.Queue = queue.Queue()
    client.async_infer(model, list_inputs(text=texts), lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=60)
    assert error is None, error
    return result.as_numpy("embeddings").tolist()


def infer_in_stream(texts: np.ndarray) -> list[list[float]]:
    """One by one, with a request in between that is answered by an error."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for text in texts:
        client.async_stream_infer(model, list_inputs(text=np.array([text], dtype=object)))
    client.async_stream_infer("nobody", list_inputs(text=texts))
    client.async_stream_infer(model, list_inputs(text=texts[:1]))
    told = [answers.get(timeout=60) for _ in range(len(texts) + 2)]
    client.stop_stream()
    assert [error is not None for _, error in told] == [*[False] * len(texts), True, False], told
    return [result.as_numpy("embeddings")[0].tolist() for result, _ in told[: len(texts)]]


def fail(name: str, **arrays: np.ndarray) -> list[str]:
    try:
        client.infer(name, list_inputs(**arrays))
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("a wrong request was accepted")


def is_serving() -> bool:
    with grpc.insecure_channel(given["address"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answers = [stub.Check(health_pb2.HealthCheckRequest(), timeout=60)]
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        answers.append(next(watching))
        watching.cancel()
    return all(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers)


width = max(len(row) for row in given["ids"])
ids = np.array([row + [0] * (width - len(row)) for row in given["ids"]])
mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in given["ids"]])
texts = np.array(given["texts"], dtype=object)
encoded = np.array([text.encode() for text in given["texts"]], dtype=object)
found = {
    "is live": client.is_server_live(),
    "is ready": client.is_server_ready(),
    "is model ready": client.is_model_ready(model),
    "is serving": is_serving(),
    "server": client.get_server_metadata().name,
    "outputs": [tensor.name for tensor in client.get_model_metadata(model).outputs],
    "num texts at once": client.get_model_config(model).config.max_batch_size,
    "models": [each.name for each in client.get_model_repository_index().models],
    "of texts": infer(model, "embeddings", text=texts),
    "of bytes": infer(model, "embeddings", text=encoded),
    "of ids": infer(model, "embeddings", input_ids=ids, attention_mask=mask),
    "later": infer_later(texts),
    "in a stream": infer_in_stream(texts),
    "logits": infer(given["classifier"], "logits", text=texts),
    "errors": [
        fail("nobody", text=texts),
        fail(model, text=np.array([], dtype=object)),
        fail(given["writer"], text=texts),
    ],
}
(stats,) = client.get_inference_statistics(model).model_stats
print(json.dumps({**found, "num computed": stats.inference_count}))
