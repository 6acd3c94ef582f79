"""What the first lines say of a server that is ready: what runs, at what cost, and how to talk to it."""

import json

from models.info import ModelInfo
from models.tokenizer_files import has_tokenizer
from runtime.engine import EngineInfo
from server.processes.deployment import DeployedModel, Deployment
from server.tasks.head import Example
from server.tasks.registry import HEADS
from server.text.chat_template import load_chat_template


def describe_model(model: DeployedModel, info: EngineInfo) -> str:
    weights, activations = info.weight_bytes / 2**20, info.activation_bytes / 2**20
    cache = f" + KV cache {info.kv_cache_bytes / 2**20:.1f} MB ({info.kv_cache_dtype})" if info.num_blocks else ""
    graphs = f" + CUDA graphs {info.graph_bytes / 2**20:.1f} MB" if info.graph_bytes else ""
    counters = f" + counters of penalties {info.counter_bytes / 2**20:.1f} MB" if info.counter_bytes else ""
    total = weights + activations + (info.graph_bytes + info.counter_bytes + info.kv_cache_bytes) / 2**20
    replicas, devices = model.config.engine.replicas, model.config.engine.device_names
    where = info.device if len(devices) == 1 else f"{', '.join(devices)} in turn"
    kernels = f" with {info.kernels} kernels" if info.device == "cpu" else ""
    unplanned = f"; ops that allocate for themselves: {', '.join(info.unplanned_ops)}" if info.unplanned_ops else ""
    outcome = model.head.describe_output(model.info)
    heads = [f"{model.config.name}/{head.info.head}: {describe_head(head.info)}" for head in model.named_heads]
    precision = [] if info.chosen is None else [f"  precision  {info.chosen}"]
    nodes = ", ".join(f"{name} {count}" for name, count in info.nodes)
    return "\n".join(
        [
            f"{model.config.name}: {model.info.architecture}, {model.head.name}, from {model.directory}",
            f"  engine     {info.kind}, {info.precision} ({info.precision_reason}), on {where}{kernels}, "
            f"{replicas} replica{'s' * (replicas > 1)} with {info.threads} thread{'s' * (info.threads > 1)}",
            *precision,
            *([f"  nodes      {nodes}"] if len(info.nodes) > 1 else []),
            f"  memory     weights {weights:.1f} MB + activations {activations:.1f} MB at the largest batch "
            f"({info.max_batch_tokens} tokens){graphs}{counters}{cache} = {total:.1f} MB per replica{unplanned}",
            f"  inputs     up to {model.max_input_tokens} tokens, {outcome}",
            *([f"  heads      {'; '.join(heads)}"] if heads else []),
        ]
    )


def describe_head(info: ModelInfo) -> str:
    head = HEADS[info.task]
    return f"{head.name}, {head.describe_output(info)}"


def describe_access(deployment: Deployment, url: str, admin_url: str, seconds: float) -> str:
    example = find_example(deployment.models[0])
    metrics = "/metrics" if admin_url == url else f"{admin_url}/metrics"
    grpc_port = deployment.config.server.grpc_port
    grpc = "" if grpc_port is None else f", gRPC on port {grpc_port}"
    key = " -H 'authorization: Bearer YOUR_KEY'" if deployment.keys else ""
    return (
        f"Ready after {seconds:.1f} s on {url} (docs at /docs, metrics at {metrics}{grpc}). Try:\n"
        f"  curl {url}{example.route}{key} {write_body(example)}"
    )


def write_body(example: Example) -> str:
    """As curl's options."""
    if example.is_form:
        return " ".join(f"-F {name}={value}" for name, value in example.body.items())
    return f"-H 'content-type: application/json' -d '{json.dumps(example.body)}'"


def find_example(model: DeployedModel) -> Example:
    """A request that this model answers."""
    has_chat_template = load_chat_template(model.text_directory, model.config.chat.template).is_there
    takes_texts = has_tokenizer(model.text_directory)
    return model.head.make_example(model.info, model.config.name, takes_texts, has_chat_template)
