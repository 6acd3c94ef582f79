"""Reranking as Cohere (v1 and v2), Jina and vLLM have it, on the paths that they share: the answer holds what the
clients of each parse.

Where they differ: documents come back unless `return_documents` is false (Jina, vLLM), and on `/v2` only if it is true
(Cohere's has no such field). Pairs that are too long are cut, as Cohere cuts them. An error has Cohere's `message` and
vLLM's `error`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, StrictBool, StrictInt
from typing_extensions import TypedDict

from server.errors import InvalidField, ServiceError
from server.http.api import openai_errors
from server.http.api.cohere_schemas import ApiVersion
from server.http.api.fields import MAX_LIST, MAX_OPTIONS, Label, ModelName
from server.http.api.openai_schemas import EmbeddingUsage, ErrorDetails, count_usage
from server.http.api.pooling_fields import PoolingFields
from server.http.body import parse_body
from server.http.call import Call, Reply, reply_json
from server.http.ranking import Question, SideTexts, pick_ranker, score
from server.http.route import Route, Shape
from server.http.state import ServedModel, ServerState
from server.tasks.rerank import Scores, rank_scores

Document = str | Annotated[dict[str, str], Field(max_length=MAX_OPTIONS)]


class RerankRequest(PoolingFields):
    """Body of `POST /v1/rerank` and `POST /v2/rerank`."""

    model: ModelName | None = Field(None, description="Needed only where several models rank.")
    query: str = Field(examples=["What is the capital of France?"])
    documents: Annotated[
        list[Document],
        Field(
            fail_fast=True,
            max_length=MAX_LIST,
            description="a list of texts, or of objects with a text",
            examples=[["Paris is.", {"text": "Lyon is not."}]],
        ),
    ]
    top_n: Annotated[StrictInt, Field(ge=0)] | None = Field(None, description="So many of the best; 0: all.")
    return_documents: StrictBool | None = Field(None, description="If absent, yes on /v1 and no on /v2.")
    max_tokens_per_doc: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="What is behind them is not read. If absent, as many as the model takes."
    )
    rank_fields: Annotated[list[Label], Field(fail_fast=True, max_length=MAX_OPTIONS)] | None = Field(
        None, description="Of documents that are objects: what is read, a line each; `text` if absent."
    )
    raw_scores: StrictBool | None = Field(None, description="Logits instead of numbers between 0 and 1.")
    use_activation: StrictBool | None = Field(None, description="false: vLLM's way to ask for logits.")


class DocumentReply(TypedDict):
    """And what else was in the object that was sent."""

    text: str


class RankedDocument(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[DocumentReply]


class SearchUnits(TypedDict):
    search_units: int


class TokenCounts(TypedDict):
    input_tokens: int
    output_tokens: int


class Meta(TypedDict):
    api_version: ApiVersion
    billed_units: SearchUnits
    tokens: TokenCounts


class RerankReply(TypedDict):
    """Best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]
    usage: EmbeddingUsage
    meta: Meta


class RerankErrorReply(TypedDict):
    message: str
    error: ErrorDetails


async def rerank_v1(call: Call, state: ServerState) -> Reply:
    return await rank_documents(call, state, version="1", returns_documents=True)


async def rerank_v2(call: Call, state: ServerState) -> Reply:
    return await rank_documents(call, state, version="2", returns_documents=False)


async def rank_documents(call: Call, state: ServerState, *, version: str, returns_documents: bool) -> Reply:
    """`returns_documents`: unless the body says otherwise."""
    asked = parse_body(RerankRequest, call.take_body())
    call.adopt_request_id(asked.request_id)
    model = pick_ranker(state, asked.model)
    call.model = model.name
    texts = [read_document(document, asked.rank_fields, index) for index, document in enumerate(asked.documents)]
    _, max_input_tokens = asked.limit_pairs(model)
    question = Question(
        SideTexts([asked.query], "query"),
        SideTexts(texts, "documents"),
        asked.choose_side(model),  # who asks here expects long documents to be cut
        "raw" if asked.raw_scores or asked.use_activation is False else "sigmoid",
        max_document_tokens=asked.max_tokens_per_doc,
        max_input_tokens=max_input_tokens,
        priority=asked.priority or 0,
    )
    results = list_results(await score(call, model, question), asked.top_n or None)
    if returns_documents if asked.return_documents is None else asked.return_documents:
        for result in results:
            result["document"] = write_document(asked.documents[result["index"]], texts[result["index"]])
    return reply_json(describe(call, model, results, version))


def read_document(document: Document, fields: Sequence[str] | None, index: int) -> str:
    """Its text. Raises InvalidField where an object has no such field."""
    if isinstance(document, str):
        return document
    names = fields or ("text",)
    missing = [name for name in names if name not in document]
    if missing:
        raise InvalidField(f"documents[{index}] has no field {missing[0][:50]!r}", param="documents")
    return "\n".join(document[name] for name in names)


def write_document(document: Document, text: str) -> Any:
    return {"text": text} if isinstance(document, str) else {"text": text, **document}


def list_results(scores: Scores, top_n: int | None) -> list[dict[str, Any]]:
    """The `top_n` best, all if None."""
    values = scores.tolist()
    return [{"index": index, "relevance_score": values[index]} for index in rank_scores(scores)[:top_n]]


def describe(call: Call, model: ServedModel, results: list[dict[str, Any]], version: str) -> dict[str, Any]:
    num_tokens = call.times.num_tokens
    return {
        "id": f"rerank-{call.request_id.decode()}",
        "object": "list",
        "model": model.full_name,
        "results": results,
        "usage": count_usage(num_tokens),
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": num_tokens, "output_tokens": 0},
        },
    }


def render_error(error: ServiceError) -> Shape:
    shape = openai_errors.render_error(error)
    return Shape(shape.status, {"message": error.message, **shape.body})


ROUTE = Route(
    "POST",
    "/v1/rerank",
    rerank_v1,
    render_error,
    "Rank documents by how well they answer a query",
    "rerank",
    schema=RerankRequest.model_json_schema(),
    reply=RerankReply,
    error_reply=RerankErrorReply,
    deadline="default",
)
ROUTES = (ROUTE, replace(ROUTE, path="/v2/rerank", answer=rerank_v2))
"""`/rerank` is another protocol's as well: `rerank_either`."""
