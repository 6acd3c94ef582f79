"""Engines that run a module itself, op by op: nothing is rewritten and nothing planned."""

import torch
from torch import nn

from runtime.capture import Decodes, capture_module, describe_outputs, read_inputs
from runtime.config import EngineConfig
from runtime.engine import Engine, EngineInfo, Progress
from runtime.engines.reference import ReferenceEngine
from runtime.kv_cache.layout import KV_DTYPES
from runtime.lazy_module import DraftModel, LazyModule, as_lazy
from runtime.limits import BatchLimits
from runtime.open import give_caches, set_up_torch


def build_reference(
    model: nn.Module | LazyModule,
    config: EngineConfig,
    limits: BatchLimits,
    progress: Progress,
    draft: DraftModel | None = None,
) -> Engine:
    """Plain modules, op by op; generators with a cache. Raises UnusableConfig."""
    set_up_torch(config)
    device = torch.device(config.device)
    models = [model] if draft is None else [model, draft.model]
    modules = [as_lazy(each).fill().eval().requires_grad_(False).to(device) for each in models]
    inners = [build_reference_step(each, limits, config, progress) for each in modules]
    if not isinstance(modules[0], Decodes):
        return inners[0]
    dtype = torch.float32 if config.kv_cache.dtype == "auto" else KV_DTYPES[config.kv_cache.dtype]
    layouts = [each.kv_layout(dtype) for each in modules if isinstance(each, Decodes)]
    lazy_encoder, encoder = as_lazy(model).encoder, None
    if lazy_encoder is not None:
        module = lazy_encoder.fill().eval().requires_grad_(False).to(device)
        encoder = build_reference_step(module, limits.of_sources(), config, progress)
    return give_caches(inners, layouts, config, limits, 0 if draft is None else draft.num_tokens, encoder)


def build_reference_step(
    module: nn.Module, limits: BatchLimits, config: EngineConfig, progress: Progress
) -> ReferenceEngine:
    """The module is captured to know what it reads and gives; it runs as it is."""
    device = torch.device(config.device)
    graph_module = capture_module(module, device, progress)
    weight_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    info = EngineInfo(
        kind="reference",
        precision="fp32",
        precision_reason="the reference is always fp32",
        device=config.device_names[0],
        threads=torch.get_num_threads(),
        outputs=describe_outputs(graph_module),
        weight_bytes=weight_bytes,
        max_batch_tokens=limits.max_batch_tokens,
    )
    return ReferenceEngine(module, read_inputs(graph_module), limits.largest(), device, info)
