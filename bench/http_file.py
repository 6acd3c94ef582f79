"""`python -m bench.http_file`: one quantised ONNX file over HTTP, by Padless and by infinity-emb's optimum engine.

MiniLM as optimum exports it, its linear layers quantised by ONNX Runtime: both servers compute with the same file, so
what differs is how texts are batched and what HTTP costs. One text of 3 to 50 words per request, 64 connections, in
turn; infinity-emb with batches as it has them and with 8, in an environment that is made on the first run.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import yaml
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModel

from bench.http import measure_cosine, report, run_round
from bench.http_peers import MODEL, ServerPeer, serve_with_infinity, start_peer
from bench.minilm import DIRECTORY
from loadtest.server_process import serve

FILE = "model_quantized.onnx"
REQUIREMENTS = (
    "infinity-emb[server]==0.0.78",
    "optimum==2.1.0",
    "optimum-onnx[onnxruntime]==0.1.0",
    "onnxruntime==1.32.0",
    "transformers==4.57.6",
    "sentence-transformers==5.7.0",
    "torch==2.13.0",
)
CONFIG = Path("configs/onnx-file.yaml")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def infinity(*words: str) -> ServerPeer:
    """It finds a file of a local directory only where it runs in that directory."""
    return ServerPeer(REQUIREMENTS, serve_with_infinity("optimum", "--pooling-method", "mean", *words, model="."))


PEERS = {
    "infinity-emb optimum": infinity(),
    "infinity-emb optimum, batch 8": infinity("--batch-size", "8"),
}


class LastHiddenState(torch.nn.Module):
    """transformers' model with the inputs in a file's order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(DIRECTORY, attn_implementation="eager").eval()

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.model(**dict(zip(INPUTS, arrays, strict=True))).last_hidden_state
        return rows


def write_model(folder: Path) -> Path:
    """The model's directory without weights, with the quantised file."""
    model = folder / MODEL
    model.mkdir()
    for path in DIRECTORY.iterdir():
        if path.suffix != ".safetensors":
            (model / path.name).symlink_to(path)
    exported = folder / "model.onnx"
    axes = {0: "sequences", 1: "length"}
    ids = torch.full((2, 16), 1000)
    torch.onnx.export(
        LastHiddenState(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(exported),
        input_names=list(INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys((*INPUTS, "last_hidden_state"), axes),
        opset_version=17,
        dynamo=False,
    )
    quantize_dynamic(exported, model / FILE, per_channel=True, reduce_range=True)
    return model


@contextmanager
def serve_file(model: Path, folder: Path) -> Iterator[str]:
    """Padless's URL."""
    config = yaml.safe_load(CONFIG.read_text())
    (served,) = config["models"]
    served["source"] = {"path": str(model)}
    served["engine"]["onnxruntime"]["file"] = FILE
    path = folder / "onnx-file.yaml"
    path.write_text(yaml.safe_dump(config))
    with serve(str(path), log=folder / "padless.log") as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=4, help="(default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = write_model(folder)
        urls = {"padless": stack.enter_context(serve_file(model, folder))}
        for name, peer in PEERS.items():
            urls[name] = stack.enter_context(start_peer(name, peer, folder / "peer.log", model, model))
        cosines = {name: measure_cosine(url) for name, url in urls.items()}
        # The first one warms up.
        rounds = [run_round([], urls, arguments.seconds) for _ in range(arguments.rounds + 1)][1:]
    report("http-onnx-file", rounds, [], cosines)


if __name__ == "__main__":
    main()
