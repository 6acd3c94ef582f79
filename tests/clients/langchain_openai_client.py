"""Drives a server with langchain-openai: texts as they are, for its own tokens are those of OpenAI's models."""

import asyncio
import json
import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

url, given = sys.argv[1], json.loads(sys.argv[2])
texts = given["texts"]
reach = {"base_url": f"{url}/v1", "api_key": "none", "model": given["model"], "check_embedding_ctx_length": False}
embeddings = OpenAIEmbeddings(**reach)
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=given["writer"], temperature=0, max_completion_tokens=8)
answer = chat.invoke("Hello")
print(
    json.dumps(
        {
            "documents": embeddings.embed_documents(texts),
            "query": embeddings.embed_query(texts[0]),
            "shortened": OpenAIEmbeddings(**reach, dimensions=16).embed_documents(texts),
            "later": asyncio.run(embeddings.aembed_documents(texts)),
            "chat": answer.content,
            "num_tokens": answer.usage_metadata["output_tokens"],
            "streamed": "".join(part.content for part in chat.stream("Hello")),
        }
    )
)
