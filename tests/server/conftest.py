"""A tiny tokenizer, an engine that does what a test tells it, and the application around them, in process."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fake_generator import GenerationServer, build_generation_server, write_directory
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.config import HttpConfig, LimitsConfig, ModelConfig, ServerConfig, SourceConfig
from server.http.admission import Admission
from server.http.app import App
from server.http.state import ServedModel, ServerState, add_heads
from server.metrics import Metrics
from server.tasks.registry import HEADS, TASKS, list_outputs
from server.text.tokenizer import Tokenizer
from server.text.tokenizer_file import load_tokenizer
from server.wire.job import EngineStatus, Job, Ragged, Result, join_rows
from server.wire.result_stream import ResultStream

EMBED_DIM = 8
MAX_TOKENS = 16
WORDS = [f"word{index}" for index in range(60)]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "un", "##able", "##s"]
UNK, CLS, SEP = 1, 2, 3
LABELS = {0: "negative", 1: "neutral", 2: "positive"}


def compute_row(input_ids: np.ndarray, output_dim: int) -> np.ndarray:
    """Depends on every id and its place, so that a mistake in the order of anything shows."""
    weights = np.arange(1, len(input_ids) + 1)
    seed = float((np.asarray(input_ids, dtype=np.float64) * weights).sum())
    row = np.cos(seed * 0.37 + np.arange(output_dim) * (1.0 + seed % 7))
    return (row / np.linalg.norm(row)).astype(np.float32)


@dataclass
class FakeEngine:
    """An EngineClient. Waits for `gate` if there is one; raises `error`, answers NaN in `nan_rows`."""

    info: ModelInfo
    further: Sequence[ModelInfo] = ()
    gate: asyncio.Event | None = None
    error: Exception | None = None
    nan_rows: tuple[int, ...] = ()
    reported: tuple[EngineStatus, ...] = (EngineStatus(is_ready=True, reason="ready"),)
    num_running: int = 0
    num_cancelled: int = 0
    jobs: list[Job] = field(default_factory=list)
    calls: list[list[list[int]]] = field(default_factory=list)
    types: list[list[list[int] | None]] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def statuses(self) -> tuple[EngineStatus, ...]:
        return self.reported

    def submit(self, job: Job) -> ResultStream:
        types = job.inputs.get("token_type_ids")
        self.jobs.append(job)
        self.calls.append([job.input_ids.row(index).tolist() for index in range(job.num_inputs)])
        rows = [None if types is None else types.row(index) for index in range(job.num_inputs)]
        self.types.append([None if row is None or not row.any() else row.tolist() for row in rows])
        stream = ResultStream(lambda rows: task.cancel())
        task = asyncio.create_task(self.compute(job, stream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return stream

    async def compute(self, job: Job, stream: ResultStream) -> None:
        self.num_running += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        if self.error is not None:
            stream.fail(self.error)
            return
        specs = {spec.name: spec for spec in list_outputs([self.info, *self.further])}
        arrays = {name: self.compute_values(job, specs[output]) for name, output in job.outputs.items()}
        arrays = TASKS[job.task].reduce_rows(arrays, job, range(job.num_inputs))
        stream.put(Result(np.arange(job.num_inputs, dtype=np.int32), arrays, True, queue_s=0.001, engine_s=0.002))

    def compute_values(self, job: Job, spec: ArraySpec) -> Ragged:
        """One row for each input, or for each token: of the input up to it."""
        inputs = [job.input_ids.row(index) for index in range(job.num_inputs)]
        width = int(spec.dims[-1])
        if spec.dims[0] in ("num_tokens", "num_logits"):
            rows = [np.stack([self.compute_row(ids[: end + 1], width) for end in range(len(ids))]) for ids in inputs]
            if spec.dims[0] == "num_logits":
                rows = [each[job.inputs["logit_rows"].row(index)] for index, each in enumerate(rows)]
            return join_rows(rows)
        values = np.stack([self.compute_row(ids, width) for ids in inputs])
        values[list(self.nan_rows)] = np.nan
        return Ragged(values)

    def compute_row(self, input_ids: np.ndarray, width: int) -> np.ndarray:
        return compute_row(input_ids, width)

    async def close(self) -> None:
        return None


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a BERT-like tokenizer.json, with padding and truncation stored in it as some models have them."""
    raw = RawTokenizer(models.WordPiece({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    raw.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    raw.enable_padding(length=12)
    raw.enable_truncation(6)
    directory = tmp_path_factory.mktemp("model")
    raw.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="session")
def tokenizer(model_directory: Path, pool: ThreadPoolExecutor) -> Tokenizer:
    return build_tokenizer(model_directory, pool)


def build_tokenizer(model_directory: Path, pool: ThreadPoolExecutor, **options: Any) -> Tokenizer:
    defaults = {"max_input_tokens": MAX_TOKENS, "vocab_size": len(VOCAB), "type_vocab_size": 2, "num_threads": 2}
    return load_tokenizer(model_directory, pool=pool, **(defaults | options))


@dataclass
class Server:
    """The application and what is behind it."""

    app: App
    state: ServerState
    client: httpx.AsyncClient
    engines: Mapping[str, Any]
    """By model's name."""

    @property
    def embed(self) -> FakeEngine:
        return cast(FakeEngine, self.engines["embedder"])

    @property
    def classify(self) -> FakeEngine:
        return cast(FakeEngine, self.engines["classifier"])

    def count(self, **labels: str) -> float:
        """`padless_requests_total`, summed over what is not named."""
        return self.sum_samples("padless_requests_total", **labels)

    def sum_samples(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for metric in self.state.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def embed_text(self, text: Any, **options: Any) -> httpx.Response:
        headers = options.pop("headers", None)
        return await self.client.post(
            "/v1/embeddings", json={"model": "embedder", "input": text, **options}, headers=headers
        )


EMBEDDER = ModelInfo("BertModel", "embed", len(VOCAB), 2, MAX_TOKENS, EMBED_DIM, normalize=True)
CLASSIFIER = ModelInfo(
    "BertForSequenceClassification", "classify", len(VOCAB), 2, MAX_TOKENS, len(LABELS), id2label=LABELS
)
INFOS = {"embedder": EMBEDDER, "classifier": CLASSIFIER}
SPARSE = replace(EMBEDDER, architecture="BertForMaskedLM", task="sparse", output_dim=len(VOCAB), normalize=False)
RANKER = replace(CLASSIFIER, output_dim=1, id2label={0: "LABEL_0"})


def build_state(
    tokenizer: Tokenizer,
    limits: LimitsConfig,
    http: HttpConfig,
    infos: Mapping[str, ModelInfo],
    heads: Mapping[str, Sequence[ModelInfo]] = {},
) -> ServerState:
    configs = tuple(ModelConfig(name=name, source=SourceConfig(path="unused"), limits=limits) for name in infos)
    served = {
        config.name: add_heads(
            ServedModel(
                config.name,
                config,
                HEADS[infos[config.name].task],
                infos[config.name],
                tokenizer,
                Admission(limits.max_concurrent_requests),
                FakeEngine(infos[config.name], heads.get(config.name, ())),
            ),
            heads.get(config.name, ()),
        )
        for config in configs
    }
    return ServerState(ServerConfig(server=http, models=configs), served, Metrics(CollectorRegistry()))


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server(tokenizer: Tokenizer) -> MakeServer:
    """`make_server(max_concurrent_requests=4, http={...}, others={"ranker": RANKER})`; the client is closed with the
    event loop. There are always an `embedder` and a `classifier`."""

    def make(
        *,
        http: dict[str, Any] | None = None,
        tokenizer: Tokenizer = tokenizer,
        others: Mapping[str, ModelInfo] = {},
        heads: Mapping[str, Sequence[ModelInfo]] = {},
        **limits: Any,
    ) -> Server:
        infos = {**INFOS, **others}
        state = build_state(tokenizer, LimitsConfig(**limits), HttpConfig(**(http or {})), infos, heads)
        app = App(state)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://padless")
        engines = {name: model.engine for name, model in state.models.items()}
        return Server(app, state, client, engines)

    return make


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Give other tasks their turns until it holds; a hang fails instead of blocking the run."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class RawCall:
    """One ASGI call whose client can send half a body, wait, and go away."""

    def __init__(
        self,
        app: App,
        path: str,
        *chunks: bytes,
        is_complete: bool = True,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, chunk in enumerate(chunks):
            has_more = not is_complete or index + 1 < len(chunks)
            self._incoming.put_nowait({"type": "http.request", "body": chunk, "more_body": has_more})
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"padless"), (b"content-type", b"application/json"), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.disconnect()  # as ASGI has it once all has been answered

    def disconnect(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


@pytest.fixture(scope="session")
def generator_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_directory(tmp_path_factory.mktemp("generator"))


MakeGenerator = Callable[..., GenerationServer]


@pytest.fixture
def make_generator(generator_directory: Path, pool: ThreadPoolExecutor) -> MakeGenerator:
    """`make_generator(max_concurrent_requests=4, http={...})`."""
    return partial(build_generation_server, generator_directory, pool)


@pytest.fixture
def generator(make_generator: MakeGenerator) -> GenerationServer:
    return make_generator()
