"""OpenVINO behind a FastAPI route, as one writes it in an afternoon: `python -P http_openvino.py MODEL GRAPH PORT`.

Imports nothing of ours: it runs in an environment of its own; -P, because http.py lies beside it. Each request is one
inference, as many in flight as OpenVINO's THROUGHPUT hint wants; texts of one request are padded to a batch.
"""

import asyncio
import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import uvicorn
from fastapi import FastAPI
from tokenizers import Tokenizer

MAX_TOKENS = 256


def build_app(model: Path, graph: Path) -> FastAPI:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_CPU_PINNING": False}
    if "fp32" in graph.name:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    requests = [
        compiled.create_infer_request() for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    ]
    free: asyncio.Queue[openvino.InferRequest] = asyncio.Queue()
    for request in requests:
        free.put_nowait(request)
    app = FastAPI()

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"data": [{"id": model.name, "object": "model"}]}

    @app.post("/v1/embeddings")
    async def embed(body: dict[str, Any]) -> dict[str, Any]:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        encodings = tokenizer.encode_batch(texts)
        inputs = (
            np.array([encoding.ids for encoding in encodings], np.int64),
            np.array([encoding.attention_mask for encoding in encodings], np.int64),
        )
        request = await free.get()
        try:
            rows = await asyncio.to_thread(lambda: np.array(request.infer(inputs)[0], np.float32))
        finally:
            free.put_nowait(request)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(row, body.get("encoding_format"))}
                for index, row in enumerate(rows)
            ],
            "model": body["model"],
            "usage": {key: int(inputs[1].sum()) for key in ("prompt_tokens", "total_tokens")},
        }

    return app


def encode(row: np.ndarray, encoding_format: str | None) -> str | list[float]:
    return base64.b64encode(row.tobytes()).decode() if encoding_format == "base64" else row.tolist()


if __name__ == "__main__":
    app = build_app(Path(sys.argv[1]), Path(sys.argv[2]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", access_log=False)
