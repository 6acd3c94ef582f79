"""What runs here, and how it is doing."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.http.endpoint import LeanRoute, answer_json, find_state
from server.http.state import ServedModel

router = APIRouter(route_class=LeanRoute, tags=["admin"])


@router.get("/info", summary="Models, engines and the effective configuration")
async def get_info(request: Request) -> Response:
    state = find_state(request)
    return answer_json(
        {
            "server": "padless",
            "version": request.app.version,
            "is_draining": state.is_draining,
            "models": [describe_model(model) for model in state.models.values()],
            "config": state.config.model_dump(mode="json"),
        }
    )


def describe_model(model: ServedModel) -> dict[str, Any]:
    info = asdict(model.info)
    info["id2label"] = {str(index): label for index, label in model.info.id2label.items()}
    return {
        "name": model.name,
        **info,
        "max_input_tokens": model.tokenizer.max_input_tokens,
        "admitted_inputs": model.admission.num_inputs,
        "admitted_tokens": model.admission.num_tokens,
        "replicas": [asdict(status) for status in model.engine.status()],
    }


@router.get("/metrics", summary="Prometheus metrics of all processes")
async def get_metrics(request: Request) -> Response:
    state = find_state(request)
    for model in state.models.values():
        state.metrics.observe_admitted(
            model.name, num_inputs=model.admission.num_inputs, num_tokens=model.admission.num_tokens
        )
    # Some milliseconds with many processes: not on the event loop.
    text = await asyncio.to_thread(state.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
