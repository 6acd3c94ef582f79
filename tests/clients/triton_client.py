"""Drives a server with Triton's HTTP client: tensors go and come as bytes, as it does by default, and as JSON."""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

url, given = sys.argv[1], json.loads(sys.argv[2])
client = triton.InferenceServerClient(url.removeprefix("http://"))


def infer(model: str, output: str, *, is_binary: bool, **arrays: np.ndarray) -> list[list[float]]:
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "INT64")
        tensor.set_data_from_numpy(array, binary_data=is_binary)
        inputs.append(tensor)
    wanted = [triton.InferRequestedOutput(output, binary_data=is_binary)]
    answer = client.infer(model, inputs, outputs=wanted, request_id="7")
    assert answer.get_response()["id"] == "7"
    return answer.as_numpy(output).tolist()


def infer_by_default(model: str, output: str, texts: np.ndarray) -> list[list[float]]:
    tensor = triton.InferInput("text", list(texts.shape), "BYTES")
    tensor.set_data_from_numpy(texts)
    return client.infer(model, [tensor]).as_numpy(output).tolist()


def infer_later(model: str, output: str, texts: np.ndarray) -> list[list[float]]:
    tensor = triton.InferInput("text", list(texts.shape), "BYTES")
    tensor.set_data_from_numpy(texts)
    return client.async_infer(model, [tensor]).get_result().as_numpy(output).tolist()


def fail() -> list[str]:
    try:
        client.infer("nobody", [])
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("an unknown model was accepted")


width = max(len(row) for row in given["ids"])
ids = np.array([row + [0] * (width - len(row)) for row in given["ids"]])
mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in given["ids"]])
texts = np.array(given["texts"], dtype=object)
encoded = np.array([text.encode() for text in given["texts"]], dtype=object)
model, classifier = given["model"], given["classifier"]
print(
    json.dumps(
        {
            "is live": client.is_server_live(),
            "is ready": client.is_server_ready(),
            "is model ready": client.is_model_ready(model),
            "server": client.get_server_metadata(),
            "metadata": client.get_model_metadata(model),
            "by default": infer_by_default(model, "embeddings", texts),
            "of bytes": infer(model, "embeddings", is_binary=True, text=encoded),
            "as JSON": infer(model, "embeddings", is_binary=False, text=texts),
            "of ids": infer(model, "embeddings", is_binary=True, input_ids=ids, attention_mask=mask),
            "of ids as JSON": infer(model, "embeddings", is_binary=False, input_ids=ids, attention_mask=mask),
            "later": infer_later(model, "embeddings", texts),
            "logits": infer(classifier, "logits", is_binary=True, text=texts),
            "error": fail(),
        }
    )
)
