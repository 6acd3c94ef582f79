"""Evaluates a server's embedder and ranker with mteb's wrappers on its own synthetic text tasks."""

import json
import sys
from typing import Any

import mteb
from mteb.models import OpenAIAPIEncodeWrapper, OpenAIAPIRerankWrapper
from mteb.results import TaskResult

url, given = sys.argv[1], json.loads(sys.argv[2])


def run(model: Any) -> dict[str, str | None]:
    """By task: None where it ran, else why not. Those that are not for this kind of model are left out."""
    results = mteb.mock_run(model).items()
    return {name: None if isinstance(result, TaskResult) else result.exception for name, result in results if result}


print(
    json.dumps(
        {
            # Of text alone, and not as a chat.
            "embedder": run(OpenAIAPIEncodeWrapper(url, given["model"], modalities=["text"], use_chat_template=False)),
            "ranker": run(OpenAIAPIRerankWrapper(url, given["ranker"], modalities=["text"])),
        }
    )
)
