"""Masked words and answers from the request to the scores, on a real engine."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_dirs import build_tokenizer, make_base
from test_served_prompts import Client, serve

MASKED = ["abc [MASK] def", "[MASK]", "a [MASK] b [MASK] c [MASK]", "gh ij [MASK] kl mn op", "abc [MASK] def"]
CONTEXT = "abc def ghi jkl mno pqr"


async def infer(client: Client, inputs: Any, **parameters: Any) -> Any:
    response = await client.post("/models/model", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


def check(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check(one, other)
        return
    assert found | {"score": 0} == expected | {"score": 0}
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_masked_words_are_those_of_transformers(tmp_path: Path) -> None:
    """Texts at once and one by one, of jobs with parameters of their own; there are more places than texts."""
    make_base(tmp_path / "model", head=transformers.AutoModelForMaskedLM)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(), pad_token="[PAD]", mask_token="[MASK]", sep_token="[SEP]", cls_token="[CLS]"
    )
    pipeline = transformers.pipeline("fill-mask", model=theirs, tokenizer=tokenizer)

    async def ask(client: Client) -> None:
        choices: list[dict[str, Any]] = [{}, {"top_k": 2}, {"targets": ["a", "b", "c"]}]
        answers = await asyncio.gather(*(infer(client, MASKED, **options) for options in choices))
        for options, answer in zip(choices, answers, strict=True):
            check(answer, [pipeline(text, **options) for text in MASKED])
            assert [await infer(client, text, **options) for text in MASKED] == answer

    serve(tmp_path / "model", tmp_path / "run", ask, task="fill_mask")


def test_answers_begin_and_end_where_transformers_logits_say(tmp_path: Path) -> None:
    make_base(tmp_path / "model", head=transformers.AutoModelForQuestionAnswering)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    encoding = build_tokenizer().encode("ab", CONTEXT)
    with torch.no_grad():
        output = theirs(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))
    counts = torch.tensor([owner == 1 for owner in encoding.sequence_ids])
    counts[0] = True
    starts, ends = (
        logits[0].masked_fill(~counts, -torch.inf).softmax(0).numpy()
        for logits in (output.start_logits, output.end_logits)
    )
    scores = np.triu(np.outer(starts, ends))
    scores[0] = 0
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]

    async def ask(client: Client) -> None:
        asked = {"question": "ab", "context": CONTEXT}
        found = await infer(client, [asked] * 3, align_to_words=False, max_answer_len=50)
        expected = {"score": float(scores.max()), "start": start, "end": end, "answer": CONTEXT[start:end]}
        check(found, [expected] * 3)
        whole = await infer(client, asked)
        assert whole["answer"].split() == CONTEXT[whole["start"] : whole["end"]].split()
        assert set(whole["answer"].split()) <= set(CONTEXT.split())

    serve(tmp_path / "model", tmp_path / "run", ask)
