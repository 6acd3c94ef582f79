"""Drives a server with both versions of the cohere client."""

import json
import sys
from collections.abc import Callable
from typing import Any

import cohere

url, given = sys.argv[1], json.loads(sys.argv[2])
model, texts = given["model"], given["texts"]
TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
first = cohere.Client(api_key="none", base_url=url)
second = cohere.ClientV2(api_key="none", base_url=url)


def rank(rerank: Callable[..., Any], **wanted: object) -> list[list[float]]:
    answer = rerank(model=given["ranker"], query=given["query"], documents=texts, **wanted)
    return [[result.index, result.relevance_score] for result in answer.results]


def list_types(answer: Any) -> dict[str, Any]:
    return {name: getattr(answer.embeddings, "float_" if name == "float" else name) for name in TYPES}


def fail() -> str:
    try:
        second.embed(model=model, texts=[""], input_type="search_query", embedding_types=["float"])
    except cohere.BadRequestError as error:
        return error.body["message"]
    raise AssertionError("an empty text was accepted")


print(
    json.dumps(
        {
            "first": first.embed(model=model, texts=texts, input_type="search_document").embeddings,
            # More than 96 make several requests, whose answers are put together.
            "first of many": first.embed(model=model, texts=texts * 40, input_type="search_document").embeddings,
            "first by type": list_types(
                first.embed(model=model, texts=texts, input_type="search_query", embedding_types=TYPES)
            ),
            "second": second.embed(
                model=model, texts=texts, input_type="search_document", embedding_types=["float"]
            ).embeddings.float_,
            "second by type": list_types(
                second.embed(model=model, texts=texts, input_type="search_query", embedding_types=TYPES)
            ),
            "second of inputs": second.embed(
                model=model,
                inputs=[{"content": [{"type": "text", "text": text}]} for text in texts],
                input_type="search_document",
                embedding_types=["float"],
                output_dimension=16,
            ).embeddings.float_,
            "first ranks": rank(first.rerank),
            "second ranks": rank(second.rerank, top_n=2),
            "error": fail(),
        }
    )
)
