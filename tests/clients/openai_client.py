"""Drives a server with the openai client. `python openai_client.py URL GIVEN`; prints what it got as JSON."""

import json
import sys

import openai

url, given = sys.argv[1], json.loads(sys.argv[2])
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def embed(**wanted: object) -> dict[str, object]:
    answer = client.embeddings.create(model=given["model"], **wanted)
    return {"vectors": [item.embedding for item in answer.data], "num_tokens": answer.usage.prompt_tokens}


def fail() -> dict[str, object]:
    try:
        client.embeddings.create(model="nobody", input="a text")
    except openai.NotFoundError as error:
        return {"param": error.param, "type": error.type, "message": error.message}
    raise AssertionError("an unknown model was accepted")


chat = {"model": given["writer"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
parts = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **chat))
whole = client.chat.completions.create(**chat)
print(
    json.dumps(
        {
            "models": [model.id for model in client.models.list()],
            "as base64": embed(input=given["texts"]),
            "as numbers": embed(input=given["texts"], encoding_format="float"),
            "shortened": embed(input=given["texts"], dimensions=16),
            "of ids": embed(input=given["ids"]),
            "error": fail(),
            "chat": whole.choices[0].message.content,
            "streamed": "".join(part.choices[0].delta.content or "" for part in parts if part.choices),
            "usage": [whole.usage.completion_tokens, parts[-1].usage.completion_tokens],
            "completion": client.completions.create(
                model=given["writer"], prompt="Hello", max_tokens=4, temperature=0
            ).usage.to_dict(),
        }
    )
)
