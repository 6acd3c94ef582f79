"""Prompts from the request to the vectors, on a real engine: those of sentence-transformers, whoever shares a step."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from sentence_dirs import HIDDEN_SIZE, make_base, make_texts, write_directory

from runtime.config import EngineConfig
from server.config import HeadConfig, HttpConfig, LimitsConfig, ModelConfig, ServerConfig, SourceConfig
from server.engine.executor import run_in_passing_thread
from server.http.app import App
from server.metrics import Metrics
from server.processes.building import build_model
from server.processes.engine_process import build_loop
from server.processes.http_process import build_state
from server.processes.resolution import resolve
from tests.tolerances import check_close

sentence_transformers = pytest.importorskip("sentence_transformers")

Client = httpx.AsyncClient
PROMPTS: dict[str, Any] = {
    "prompts": {"query": "ab: ", "passage": "c", "clustering": "dada " * 12},
    "default_prompt_name": "query",
}
CHOICES: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {}),
    ({"prompt_name": "passage"}, {"prompt_name": "passage"}),
    ({"prompt": "B: "}, {"prompt": "B: "}),
    ({"prompt": ""}, {"prompt": ""}),
    ({"input_type": "search_document"}, {"prompt_name": "passage"}),
    ({"input_type": "clustering"}, {"prompt_name": "clustering"}),
]
"""(fields of ours, arguments of theirs). The last prompt is longer than what the model takes."""


@asynccontextmanager
async def open_client(
    directory: Path,
    run_dir: Path,
    *,
    task: str = "auto",
    heads: Sequence[HeadConfig] = (),
    warmup: bool = False,
    **limits: Any,
) -> AsyncIterator[Client]:
    """Of the application over an engine in this process, which is ready."""
    model = ModelConfig(
        name="model",
        task=task,
        source=SourceConfig(path=str(directory)),
        heads=tuple(heads),
        engine=EngineConfig(precision="fp32", threads=1, warmup=warmup, inline=True),
        limits=LimitsConfig(**({"truncation": "right", "max_batch_tokens": 256} | limits)),
    )
    # Nothing is known of the engine's speed before its first step, which is slow: no call is to be late.
    http = HttpConfig(default_timeout_ms=600_000)
    run_dir.mkdir()
    deployment = resolve(ServerConfig(server=http, models=(model,)), run_dir)
    metrics = Metrics(CollectorRegistry())
    loop = run_in_passing_thread(partial(build_loop, deployment, deployment.models[0], 0, metrics, build_model))
    await loop.start()
    with ThreadPoolExecutor(1) as pool:
        state = build_state(deployment, 0, metrics, [loop], pool)
        async with Client(transport=httpx.ASGITransport(App(state)), base_url="http://padless") as client:
            while not loop.statuses()[0].is_ready:
                await asyncio.sleep(0.01)
            yield client
    await loop.close()


def serve(directory: Path, run_dir: Path, ask: Callable[[Client], Awaitable[None]], *, task: str = "auto") -> None:
    async def run() -> None:
        async with open_client(directory, run_dir, task=task) as client:
            await ask(client)

    asyncio.run(run())


async def embed(client: Client, given: Any, **fields: str) -> Any:
    """[n, output_dim]"""
    response = await client.post("/v1/embeddings", json={"input": given} | fields)
    assert response.status_code == 200, response.text
    return np.array([item["embedding"] for item in response.json()["data"]], np.float32)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True},
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        {f"pooling_mode_{mode}": True for mode in ("cls_token", "mean_sqrt_len_tokens", "weightedmean_tokens")}
        | {"include_prompt": False},
    ],
)
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, pooling: dict[str, Any]) -> None:
    make_base(tmp_path / "base")
    module = ("Pooling", {"word_embedding_dimension": HIDDEN_SIZE} | pooling)
    files = {"config_sentence_transformers.json": PROMPTS}
    directory = write_directory(tmp_path / "base", tmp_path / "model", [module], files)
    theirs = sentence_transformers.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    texts = make_texts()

    async def ask(client: Client) -> None:
        # All at once, so that steps hold texts of different prompts, and one by one.
        batches = await asyncio.gather(*(embed(client, texts, **fields) for fields, _ in CHOICES))
        for (fields, arguments), rows in zip(CHOICES, batches, strict=True):
            check_close(rows, theirs.encode(texts, **arguments), what=str(fields))
            alone = [await embed(client, text, **fields) for text in texts[:10]]
            check_close(np.concatenate(alone), rows[:10], what=f"{fields} alone")
        ids = theirs.tokenizer(texts[0], truncation=True)["input_ids"]
        plain = theirs.encode([texts[0]], prompt="")
        check_close(await embed(client, ids), plain, what="token ids, which have no prompt")

    serve(directory, tmp_path / "run", ask)


def test_scores_with_a_default_prompt(tmp_path: Path) -> None:
    """A cross-encoder's prompt stands before the first text of each pair."""
    make_base(tmp_path / "base", num_labels=3)
    saved = sentence_transformers.CrossEncoder(
        str(tmp_path / "base"), device="cpu", local_files_only=True, max_length=42, **PROMPTS
    )
    saved.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu", local_files_only=True)
    pairs = [(text[:12], other[:12]) for text, other in zip(make_texts(12), make_texts(12, seed=1), strict=True)]

    async def ask(client: Client) -> None:
        response = await client.post("/predict", json={"inputs": pairs, "raw_scores": True})
        rows = [{item["label"]: item["score"] for item in row} for row in response.json()]
        ours = np.array([[row[f"LABEL_{index}"] for index in range(3)] for row in rows], np.float32)
        check_close(ours, theirs.predict(pairs, activation_fn=torch.nn.Identity()))
        plain = theirs.predict(pairs, activation_fn=torch.nn.Identity(), prompt="")
        assert np.abs(ours - plain).max() > 1e-3, "the prompt must tell"

    serve(tmp_path / "model", tmp_path / "run", ask)
