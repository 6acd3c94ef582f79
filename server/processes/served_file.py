"""Whether a model is served from an ONNX file as it is, and from which: decided here, and nowhere else."""

from pathlib import Path

from models.info import ModelDirectoryError, ModelInfo
from models.onnx_files import find_only_file, list_onnx_files
from models.weight_files import has_weights
from server.config import ConfigError, ModelConfig
from server.tasks.registry import HEADS


def find_served_file(model: ModelConfig, directory: Path, info: ModelInfo) -> str | None:
    """Relative to the directory; None where its weights are served. Raises ConfigError, ModelDirectoryError."""
    told = model.engine.onnxruntime
    if model.engine.kind != "onnxruntime":
        return None
    if told.file is not None:
        check_exists(directory, info.transformer, told.file)
        file: str | None = told.file
    else:
        file = None if has_weights(directory / info.transformer) else find_only_file(directory, info.transformer)
    if file is not None:
        check_file(model, info, file)
    elif told.inputs or told.output is not None:
        raise ConfigError(
            f"model {model.name}: engine.onnxruntime.inputs and output are for an ONNX file, and the weights of "
            f"{directory} are served. Set engine.onnxruntime.file, or leave them out"
        )
    return file


def check_exists(directory: Path, transformer: str, file: str) -> None:
    """Raises ModelDirectoryError."""
    if not (directory / file).is_file():
        files = list_onnx_files(directory, transformer)
        known = f"there are {', '.join(files)}" if files else "there is none under a usual name"
        raise ModelDirectoryError(
            f"engine.onnxruntime.file {file}: {directory} has no such file; {known}. Name one that is there, relative "
            "to the model's directory"
        )


def check_file(model: ModelConfig, info: ModelInfo, file: str) -> None:
    """What cannot be asked of a file. Raises ConfigError."""
    engine = model.engine
    if HEADS[info.task].work.decodes or info.answer_token_ids:
        raise ConfigError(
            f"model {model.name}: {file} would be served as it is, which is for encoders, and {info.architecture} "
            "writes answers. Set engine.kind to planned, and use a directory with weights"
        )
    if engine.precision != "auto":
        raise ConfigError(
            f"model {model.name}: engine.precision {engine.precision}: {file} is served as it is, in the precision "
            "that it has. Set precision to auto, or engine.onnxruntime.file to a file in that precision"
        )
    for name, is_there in (("engine.quantization", engine.quantization is not None), ("heads", bool(model.heads))):
        if is_there:
            raise ConfigError(
                f"model {model.name}: {name}: {file} is served as it is, and nothing is added to it. Leave it out, or "
                "set engine.kind to planned, which serves the weights"
            )
    if info.adapters:
        raise ConfigError(
            f"model {model.name}: requests choose among its adapters, and {file} cannot be told which. Set engine.kind "
            "to planned, and use a directory with weights"
        )
