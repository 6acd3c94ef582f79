"""`/rerank`, a path of two protocols: a body with `texts` is text-embeddings-inference's, one with `documents` that of
Cohere, Jina and vLLM.

An error may come before it is known who asks: it holds what both kinds of clients look for.
"""

from typing import Any

from pydantic import BaseModel
from typing_extensions import TypedDict

from server.errors import InvalidField, ServiceError
from server.http.api import rerank, tei, tei_rerank
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.route import Route, Shape
from server.http.state import ServerState


class Keys(BaseModel):
    """What tells the protocols apart; what is in there they check themselves."""

    texts: Any = None
    documents: Any = None


class EitherErrorReply(TypedDict):
    message: str
    error: str
    error_type: str


async def rerank_either(call: Call, state: ServerState) -> Reply:
    """Which one costs parsing the body a second time: half a millisecond a megabyte."""
    keys = parse_body(Keys, call.body).model_fields_set
    if "texts" in keys and "documents" in keys:
        raise InvalidField("texts and documents mean the same; leave one of them out", param="texts")
    if "texts" in keys:
        return await tei_rerank.rerank_texts(call, state)
    if "documents" in keys:
        return await rerank.rerank_v1(call, state)
    raise InvalidField("texts or documents must be there: what is to be ranked", param="texts")


def render_error(error: ServiceError) -> Shape:
    shape = tei.render_error(error)
    return Shape(shape.status, {"message": error.message, **shape.body})


ROUTES = (
    Route(
        "POST",
        "/rerank",
        rerank_either,
        render_error,
        "Rank texts by how well they answer a query",
        "rerank",
        schema={
            "anyOf": [tei_rerank.RerankRequest.model_json_schema(), rerank.RerankRequest.model_json_schema()],
        },
        operation_id="rerank",
        reply=list[tei_rerank.Rank] | rerank.RerankReply,
        error_reply=EitherErrorReply,
        deadline="default",
    ),
)
