"""`padless export`: writes a model as an ONNX file for use elsewhere, checks it, and runs it once."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from models.info import ModelDirectoryError
from models.load import load_model
from runtime.backends.onnx.backend import portable_backend
from runtime.backends.onnx.export import save_padded
from runtime.backends.onnx.session import Session
from runtime.build import fuse
from runtime.config import EngineConfig, UnusableConfig
from server.config import ConfigError
from server.processes.deployment import DeployedModel
from server.processes.resolution import resolve_one

PRECISIONS = ("fp32", "int8")
SAMPLE = np.array([[1, 2, 3], [4, 0, 0]])
"""Token ids of two sequences, of which the second has one token."""


def export(model: DeployedModel, out: Path) -> None:
    """Raises ConfigError, ModelDirectoryError, UnusableConfig, OSError."""
    if model.head.work.decodes:
        raise ConfigError(f"--model {model.config.name}: it generates, and padless export writes encoders only")
    if model.onnx_file is not None:
        raise ConfigError(f"--model {model.config.name}: it is served from {model.onnx_file}, an ONNX file already")
    named = model.config.engine.named_precision or "fp32"
    if named not in PRECISIONS:
        raise ConfigError(
            f"--model {model.config.name}: engine.precision {named} cannot be exported. Add --set "
            "engine.precision=fp32, or int8"
        )
    config = EngineConfig(kind="onnxruntime", precision=named, quantization=model.config.engine.quantization)
    graph_module = fuse(load_model(model.directory, model.info, model.heads), config, portable_backend())
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as folder:
        written = Path(folder) / out.name
        try:
            save_padded(graph_module, written)
            session = Session(written, {}, EngineConfig(kind="onnxruntime"))
            found = run_once(session)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            raise UnusableConfig(f"the exported model does not work: {error}. This is a bug") from None
        for file in Path(folder).iterdir():  # the graph knows the one with its weights by name
            file.replace(out.parent / file.name)
    print(f"{out}: {named}, {', '.join(session.inputs)} -> {', '.join(found)}")


def run_once(session: Session) -> list[str]:
    """What it gives for a sample, by name and shape. Raises UnusableConfig."""
    given = {"input_ids": SAMPLE, "attention_mask": (SAMPLE > 0).astype(np.int64), "token_type_ids": SAMPLE * 0}
    found = session.compute({name: given[name] for name in session.inputs}, list(session.outputs))
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise UnusableConfig(f"the exported model gives numbers that are not finite for {name}. This is a bug")
    return [f"{name} {list(array.shape)}" for name, array in found.items()]


def main() -> None:
    path, name, out, *overrides = sys.argv[1:]
    try:
        with torch.no_grad():
            export(resolve_one(Path(path), name, overrides), Path(out))
    except OSError as error:
        sys.exit(f"padless: --out {out}: {error.strerror}")
    except (ConfigError, ModelDirectoryError, UnusableConfig) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
