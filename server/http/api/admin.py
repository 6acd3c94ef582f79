"""What runs here, and how it is doing."""

import asyncio
from dataclasses import asdict
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from models.info import ModelInfo
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import ErrorReply
from server.http.api.tei_info import TeiInfo, describe_served
from server.http.call import Call, Reply, reply_json
from server.http.docs import find_server_version
from server.http.route import Route
from server.http.state import ServedModel, ServerState


class Info(TeiInfo):
    """What text-embeddings-inference says of its model is here said of the first one."""

    server: str
    version: str
    is_draining: bool
    models: list[dict[str, Any]]
    config: dict[str, Any]


async def get_info(call: Call, state: ServerState) -> Reply:
    first = next(iter(state.models.values()))
    return reply_json(
        {
            **describe_served(first, state.config.server),
            "server": "padless",
            "version": find_server_version(),
            "is_draining": state.is_draining,
            "models": [describe_model(model) for model in state.models.values()],
            "config": state.config.model_dump(mode="json"),
        }
    )


def describe_model(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        **asdict(model.info),
        "id2label": write_labels(model.info),
        "task": model.head.name,
        "max_input_tokens": model.tokenizer.max_input_tokens,
        "admitted_inputs": model.admission.num_inputs,
        "admitted_tokens": model.admission.num_tokens,
        "replicas": [asdict(status) for status in model.engine.statuses()],
        "heads": [describe_head(head) for head in model.others if head.is_listed],
    }


def describe_head(head: ServedModel) -> dict[str, Any]:
    """What is its own: the rest it shares with the model's first."""
    return {
        "name": head.full_name,
        "task": head.head.name,
        "output_dim": head.info.output_dim,
        "id2label": write_labels(head.info),
    }


def write_labels(info: ModelInfo) -> dict[str, str]:
    """With keys as JSON has them."""
    return {str(index): label for index, label in info.id2label.items()}


async def get_metrics(call: Call, state: ServerState) -> Reply:
    for model in state.models.values():
        state.metrics.observe_admitted(
            model.name, num_inputs=model.admission.num_inputs, num_tokens=model.admission.num_tokens
        )
    # Some milliseconds with many processes: not on the event loop.
    text = await asyncio.to_thread(state.metrics.render)
    return Reply(text, content_type=CONTENT_TYPE_LATEST)


ROUTES = (
    Route(
        *("GET", "/info", get_info, render_error, "Models, engines and the effective configuration", "admin"),
        operation_id="get_model_info",
        reply=Info,
        error_reply=ErrorReply,
        is_admin=True,
    ),
    Route(
        *("GET", "/metrics", get_metrics, render_error, "Prometheus metrics of all processes", "admin"),
        operation_id="metrics",
        other_replies={"text/plain": {"schema": {"type": "string"}}},
        error_reply=ErrorReply,
        is_admin=True,
    ),
)
