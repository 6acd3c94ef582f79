"""An engine of a model that is served from an ONNX file as it is: nothing of it is compiled."""

import torch

from models.onnx_files import count_bytes
from models.onnx_heads import build_head
from runtime.backends.onnx.file import OnnxFile
from runtime.backends.onnx.inputs import ONNX_RUNTIME
from runtime.config import EngineConfig, UnusableConfig
from runtime.engine import Engine, EngineInfo
from runtime.engines.onnx_file import FileHead, OnnxFileEngine
from runtime.limits import BatchLimits
from runtime.open import set_up_torch
from server.processes.deployment import DeployedModel
from server.tasks.registry import list_outputs

PRECISION = "as in the file"


def open_file(model: DeployedModel, config: EngineConfig, limits: BatchLimits) -> Engine:
    """Raises UnusableConfig, ModelDirectoryError."""
    assert model.onnx_file is not None, "Only a file can be served as it is. This is a bug."
    set_up_torch(config)
    file = OnnxFile(model.directory / model.onnx_file, config)
    heads = build_heads(model, file)
    late = model.info.late_interaction
    largest = limits.largest()
    info = EngineInfo(
        kind=config.kind,
        precision=PRECISION,
        precision_reason=model.onnx_file,
        device=config.device,
        threads=torch.get_num_threads(),
        outputs=tuple(head.spec for head in heads),
        weight_bytes=count_bytes(file.path),
        max_batch_tokens=largest.num_tokens,
        kernels=ONNX_RUNTIME,
        pads=True,
        nodes=file.session.count_nodes(),
    )
    engine = OnnxFileEngine(file, heads, largest, info, has_unseen_tokens=late is not None and late.has_unseen_tokens)
    engine.prove()
    return engine


def build_heads(model: DeployedModel, file: OnnxFile) -> list[FileHead]:
    """The model's own, and of those beside it the ones that the file has an output for: it may give embeddings and no
    row of any token. Raises UnusableConfig where it has none for the model's own; ModelDirectoryError."""
    infos = [model.info, *(head.info for head in model.heads)]
    heads = []
    for info, spec in zip(infos, list_outputs(infos), strict=True):
        try:
            heads.append(build_head(model.directory, info, spec, file, pools=model.config.pooling != "auto"))
        except UnusableConfig:
            if info is model.info:
                raise
    told = file.told.output
    if told is not None and all(told not in head.sources for head in heads):
        raise UnusableConfig(
            f"engine.onnxruntime.output: {told} of {file.path} is {file.session.outputs[told].shape}, which task "
            f"{model.info.task} cannot be read from. It has {file.list_outputs()}. Name another output, or leave it out"
        )
    return heads
