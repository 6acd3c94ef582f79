"""Drives a server with llama-index's classes for text-embeddings-inference."""

import asyncio
import json
import sys

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

url, given = sys.argv[1], json.loads(sys.argv[2])
texts = given["texts"]
embeddings = TextEmbeddingsInference(model_name=given["model"], base_url=url)
nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
ranked = TextEmbeddingInference(base_url=url, top_n=2).postprocess_nodes(nodes, QueryBundle(given["query"]))
print(
    json.dumps(
        {
            "documents": embeddings.get_text_embedding_batch(texts),
            "query": embeddings.get_query_embedding(texts[0]),
            "later": asyncio.run(embeddings.aget_text_embedding_batch(texts)),
            "ranks": [[texts.index(node.text), node.score] for node in ranked],
        }
    )
)
