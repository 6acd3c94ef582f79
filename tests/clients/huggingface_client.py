"""Drives a server with huggingface_hub's InferenceClient."""

import dataclasses
import json
import sys
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

url, given = sys.argv[1], json.loads(sys.argv[2])
texts = given["texts"]


def reach(name: str) -> InferenceClient:
    return InferenceClient(f"{url}/models/{given[name]}", token="none")


def list_all(elements: list[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(element) for element in elements]


def ask(context: str, **options: Any) -> list[dict[str, Any]]:
    """One answer is given as one, and several as a list."""
    answers = reach("squad").question_answering(question=given["query"], context=context, **options)
    return list_all(answers if isinstance(answers, list) else [answers])


def fail() -> list[object]:
    try:
        reach("model").feature_extraction("")
    except HfHubHTTPError as error:
        return [error.response.status_code, error.response.json()["error"]]
    raise AssertionError("an empty text was accepted")


messages = [{"role": "user", "content": "Hello"}]
chat = InferenceClient(f"{url}/v1", token="none").chat_completion(
    messages, model=given["writer"], max_tokens=8, temperature=0
)
print(
    json.dumps(
        {
            "features": reach("model").feature_extraction(texts).tolist(),
            "features of one": reach("model").feature_extraction(texts[0], normalize=True, truncate=True).tolist(),
            "similarity": reach("model").sentence_similarity(texts[0], texts[1:]),
            "labels": list_all(reach("classifier").text_classification(texts[0])),
            "best label": list_all(
                reach("classifier").text_classification(texts[0], top_k=1, function_to_apply="sigmoid")
            ),
            "entities": list_all(reach("ner").token_classification(texts[0], aggregation_strategy="simple")),
            "topics": list_all(reach("classifier").zero_shot_classification(texts[0], ["travel", "music"])),
            "some topics": list_all(
                reach("classifier").zero_shot_classification(
                    texts[0], ["travel", "music"], multi_label=True, hypothesis_template="About {}."
                )
            ),
            "words": list_all(reach("bert").fill_mask(given["masked"])),
            "some words": list_all(reach("bert").fill_mask(given["masked"], targets=["a", "b"], top_k=2)),
            "answer": ask(texts[0]),
            "answers": ask(texts[0], top_k=2, max_answer_len=4),
            "translation": dataclasses.asdict(reach("translator").translation(texts[0])),
            "best of beams": dataclasses.asdict(
                reach("translator").translation(texts[0], generate_parameters={"num_beams": 3, "max_new_tokens": 9})
            ),
            "summary": dataclasses.asdict(
                reach("summarizer").summarization(
                    texts[0], clean_up_tokenization_spaces=True, truncation="longest_first"
                )
            ),
            "chat": chat.choices[0].message.content,
            "error": fail(),
        }
    )
)
