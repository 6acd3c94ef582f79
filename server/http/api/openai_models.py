"""OpenAI's list of models."""

from server.errors import Kind
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import ErrorReply, ModelCard, ModelList
from server.http.call import Call, Reply, reply_json
from server.http.route import Route
from server.http.state import ServedModel, ServerState


async def list_models(call: Call, state: ServerState) -> Reply:
    listed = [head for model in state.models.values() for head in model.heads if head.is_listed]
    return reply_json({"object": "list", "data": [describe_model(model) for model in listed]})


async def get_model(call: Call, state: ServerState) -> Reply:
    return reply_json(describe_model(state.find_model(call.rest)))


def describe_model(model: ServedModel) -> ModelCard:
    return {
        "id": model.full_name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "padless",
        "root": model.full_name,
        "max_model_len": model.tokenizer.max_input_tokens,
        "task": model.head.name,
    }


ROUTES = (
    Route(
        *("GET", "/v1/models", list_models, render_error, "List the models", "openai"),
        reply=ModelList,
        error_reply=ErrorReply,
    ),
    Route(
        *("GET", "/v1/models/{name}", get_model, render_error, "One model", "openai"),
        reply=ModelCard,
        error_reply=ErrorReply,
        errors=(Kind.UNKNOWN_MODEL,),
    ),
)
