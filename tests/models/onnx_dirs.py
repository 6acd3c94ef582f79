"""Model directories with ONNX files as optimum and sentence-transformers leave them: exported here, of tiny BERTs."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_dirs import make_base
from torch import Tensor, nn

from runtime.engine import Engine
from server.config import ServerConfig
from server.processes.deployment import DeployedModel
from server.processes.opening import open_model
from server.processes.resolution import resolve

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Exported(nn.Module):
    """Of transformers' outputs those that a file is to have. `sentence_embedding` is the mean of the rows, scaled."""

    def __init__(self, theirs: nn.Module, outputs: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.theirs = theirs
        self.outputs = outputs
        self.dtype = dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(INPUTS, inputs, strict=True))
        found = dict(self.theirs(**named))
        if "sentence_embedding" in self.outputs:
            mask = named["attention_mask"][:, :, None]
            total = (found["last_hidden_state"] * mask).sum(1) / mask.sum(1)
            found["sentence_embedding"] = nn.functional.normalize(total, dim=-1)
        return tuple(found[name].to(self.dtype) for name in self.outputs)


def export(
    theirs: nn.Module,
    path: Path,
    outputs: Sequence[str] = ("last_hidden_state",),
    *,
    inputs: Sequence[str] = INPUTS,
    id_dtype: torch.dtype = torch.int64,
    dtype: torch.dtype = torch.float32,
    is_fixed: bool = False,
) -> Path:
    """`inputs`: what the file calls `INPUTS`. `is_fixed`: takes batches of one size only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.ones(2, 5, dtype=id_dtype)
    axes = {} if is_fixed else {name: {0: "batch", 1: "sequence"} for name in inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter calls itself deprecated, and traces what it cannot follow
        torch.onnx.export(
            Exported(theirs, outputs, dtype).eval(),
            (example, example, torch.zeros_like(example)),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return path


def load_theirs(directory: Path, auto: Any = transformers.AutoModel) -> Any:
    """As the exporter can follow it."""
    return auto.from_pretrained(directory, attn_implementation="eager").eval()


def make_directory(directory: Path, auto: Any = transformers.AutoModel, **options: Any) -> Any:
    """With `model.onnx` beside weights. Returns transformers' model. `options`: of `export`."""
    make_base(directory, head=auto)
    theirs = load_theirs(directory, auto)
    export(theirs, directory / "model.onnx", **options)
    return theirs


def strip(directory: Path, target: Path) -> Path:
    """A copy without the Transformer's weights."""
    shutil.copytree(directory, target)
    (target / "model.safetensors").unlink()
    return target


def deploy(directory: Path, *, task: str = "auto", engine: dict[str, Any] | None = None, **keys: Any) -> DeployedModel:
    """Raises what a start does. `engine`: its section; `keys`: the model's."""
    section = {"kind": "onnxruntime", "threads": 1} | (engine or {})
    model = {"name": "m", "source": {"path": str(directory)}, "task": task, "engine": section, **keys}
    return resolve(ServerConfig.model_validate({"models": [model]}), directory).models[0]


def open_directory(directory: Path, **options: Any) -> Engine:
    """An engine that is warm. `options`: of `deploy`."""
    engine = open_model(deploy(directory, **options), 0, lambda *_: None)
    engine.warmup(lambda *_: None)
    return engine
