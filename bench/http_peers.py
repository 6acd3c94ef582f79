"""Other embedding servers that `bench.http` measures: an environment, a model in the server's form, and a command."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.minilm import DIRECTORY
from bench.peers.catalogue import OPENVINO
from bench.peers.environments import find_cache, prepare_environment
from bench.peers.fleet import Fleet
from loadtest.client import fetch
from loadtest.server_process import find_free_port

START_S = 180.0
MODEL = "all-MiniLM-L6-v2"
OPENVINO_APP = Path(__file__).parent / "http_openvino.py"
INFINITY = (
    "infinity-emb[server,torch]==0.0.78",
    "optimum==1.27.0",
    "transformers==4.48.3",
    "torch==2.13.0",
    "numpy==1.26.4",
    "pandas==2.3.3",
    "pyarrow==21.0.0",
)
"""It wants numpy 1, which newer versions of the others refuse without saying so to pip."""
OPENVINO_SERVER = (
    "openvino==2026.4.1",
    "fastapi==0.165.0",
    "uvicorn[standard]==0.54.0",
    "tokenizers==0.23.3",
    "numpy==2.4.6",
)


@dataclass(frozen=True)
class ServerPeer:
    """`command` follows the environment's `bin`; in it {model}, {converted} and {port} are filled in."""

    requirements: tuple[str, ...]
    command: tuple[str, ...]
    is_openvino: bool = False
    """Whether it serves what `bench.peers` has converted for OpenVINO; else the model directory as it is."""


def serve_with_infinity(engine: str, *words: str, model: str = "{model}") -> tuple[str, ...]:
    where = ("--device", "cpu", "--url-prefix", "/v1", "--host", "127.0.0.1", "--port", "{port}")
    names = ("--model-id", model, "--served-model-name", MODEL, "--engine", engine)
    return ("infinity_emb", "v2", *names, *where, *words)


TORCH_FP32 = ("torch", "--dtype", "float32")
PEERS = {
    "infinity-emb fp32": ServerPeer(INFINITY, serve_with_infinity(*TORCH_FP32)),
    "infinity-emb fp32, batch 8": ServerPeer(
        INFINITY, serve_with_infinity(*TORCH_FP32, "--batch-size", "8", "--no-bettertransformer")
    ),
    **{
        f"OpenVINO {precision}, FastAPI": ServerPeer(
            OPENVINO_SERVER,
            ("python", "-P", str(OPENVINO_APP), "{model}", f"{{converted}}/{precision}.xml", "{port}"),
            is_openvino=True,
        )
        for precision in ("fp32", "int8")
    },
}
"""infinity-emb as it comes, and as it was fastest on two cores. `bench.http_file` has its optimum engine."""


def prepare_model(peer: ServerPeer, model: Path, cache: Path) -> Path:
    """The model in the form that the server wants, converted once. Raises InstallError or WorkerError."""
    if not peer.is_openvino:
        return model
    fleet = Fleet({"openvino": OPENVINO}, cache)
    return fleet.convert("openvino", fleet.find_python("openvino"), model)


@contextmanager
def start(name: str, log: Path, model: Path = DIRECTORY) -> Iterator[str]:
    """As `start_peer`, of PEERS."""
    with start_peer(name, PEERS[name], log, model) as url:
        yield url


@contextmanager
def start_peer(name: str, peer: ServerPeer, log: Path, model: Path, folder: Path | None = None) -> Iterator[str]:
    """The URL of a running server, in `folder` if it has to be there; whatever `model` is, it is called MODEL.

    Raises InstallError, WorkerError, or SystemExit where it does not start.
    """
    cache, port = find_cache(), find_free_port()
    python = prepare_environment(peer.requirements, cache)
    converted = prepare_model(peer, model, cache)
    program, *words = (word.format(model=model, converted=converted, port=port) for word in peer.command)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(python.with_name(program)), *words],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
    try:
        url, until_s = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while fetch(f"{url}/v1/models") is None:
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)
