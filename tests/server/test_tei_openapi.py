"""The OpenAPI document has text-embeddings-inference's names: generated clients are called by them."""

from typing import Any

import pytest
from conftest import Server

pytestmark = pytest.mark.anyio

OPERATIONS = {
    "/embed": ("embed", "EmbedRequest"),
    "/embed_all": ("embed_all", "EmbedAllRequest"),
    "/embed_sparse": ("embed_sparse", "EmbedSparseRequest"),
    "/predict": ("predict", "PredictRequest"),
    "/similarity": ("similarity", "SimilarityRequest"),
    "/tokenize": ("tokenize", "TokenizeRequest"),
    "/decode": ("decode", "DecodeRequest"),
}


def find_references(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(find_references, part))
    if not isinstance(part, dict):
        return set()
    own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
    return own.union(*map(find_references, part.values()))


async def test_names_are_theirs(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path, (operation, name) in OPERATIONS.items():
        described = document["paths"][path]["post"]
        assert described["operationId"] == operation
        assert described["requestBody"]["content"]["application/json"]["schema"] == {
            "$ref": f"#/components/schemas/{name}"
        }
        assert {"inputs", "ids"} & schemas[name]["properties"].keys()
        error = described["responses"]["422"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorResponse"}
    others = {"/rerank": "rerank", "/v1/embeddings": "openai_embed"}
    assert {path: document["paths"][path]["post"]["operationId"] for path in others} == others
    others = {"/info": "get_model_info", "/metrics": "metrics", "/health": "health"}
    assert {path: document["paths"][path]["get"]["operationId"] for path in others} == others
    assert {"Rank", "Prediction", "SimpleToken", "SparseValue"} <= schemas.keys()


async def test_every_reference_leads_somewhere(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    names = {reference.removeprefix("#/components/schemas/") for reference in find_references(document)}
    assert names <= document["components"]["schemas"].keys()
    operations = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(operations) == len(set(operations))
