"""Drives a server with langchain-huggingface, whose class takes clients of huggingface_hub but no addresses."""

import asyncio
import json
import sys

from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings

url, given = sys.argv[1], json.loads(sys.argv[2])
texts = given["texts"]
embeddings = HuggingFaceEndpointEmbeddings(model=given["model"], huggingfacehub_api_token="none")
embeddings.client = InferenceClient(f"{url}/models/{given['model']}", token="none")
embeddings.async_client = AsyncInferenceClient(f"{url}/models/{given['model']}", token="none")
print(
    json.dumps(
        {
            "documents": embeddings.embed_documents(texts),
            "query": embeddings.embed_query(texts[0]),
            "later": asyncio.run(embeddings.aembed_documents(texts)),
        }
    )
)
