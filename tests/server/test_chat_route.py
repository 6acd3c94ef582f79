"""`/v1/chat/completions`: messages through the template, answers and logprobs in OpenAI's shape."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakeGenerator
from fake_generator import CONTEXT, EOS, GenerationServer, find_logprob, write_directory

from server.text.chat_template import load_chat_template

pytestmark = pytest.mark.anyio


def decode_prompt(generator: GenerationServer) -> str:
    return str(generator.raw.decode(generator.engine.jobs[-1].prompt, skip_special_tokens=False))


async def test_one_answer(generator: GenerationServer) -> None:
    generator.say("hello world")
    body = (await generator.chat([{"role": "system", "content": "Be."}, {"role": "user", "content": "hello"}])).json()
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == "writer"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert decode_prompt(generator) == prompt, "and no special token that the template has not written"
    assert body["usage"]["prompt_tokens"] == len(generator.engine.jobs[0].prompt)
    generator.check_idle()


async def test_it_may_fill_the_context_unless_it_is_told_otherwise(generator: GenerationServer) -> None:
    await generator.chat()
    assert generator.engine.params.max_tokens == CONTEXT - len(generator.engine.jobs[0].prompt)
    await generator.chat(max_tokens=5)
    assert generator.engine.params.max_tokens == 5
    await generator.chat(max_completion_tokens=6, max_tokens=6)
    assert generator.engine.params.max_tokens == 6


async def test_parts_and_roles(generator: GenerationServer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be."}, {"role": "user", "content": parts, "name": "me"}]
    assert (await generator.chat(messages)).is_success
    assert decode_prompt(generator).startswith(
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>"
    )


async def test_logprobs(generator: GenerationServer) -> None:
    generator.say("é")
    ids = generator.engine.answers[0]
    texts = generator.tokenizer.texts
    content = (await generator.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in content] == [texts.name(token_id) for token_id in ids]
    assert [item["logprob"] for item in content] == [find_logprob(token_id) for token_id in ids]
    assert b"".join(bytes(item["bytes"]) for item in content[:-1]).decode() == "é"
    assert [top["token"] for top in content[0]["top_logprobs"]] == [texts.name(10), texts.name(11)]
    plain = (await generator.chat(logprobs=True)).json()["choices"][0]["logprobs"]
    assert plain["refusal"] is None and plain["content"][0]["top_logprobs"] == []
    assert generator.engine.params.num_logprobs == 0


async def test_what_asks_for_nothing_is_fine(generator: GenerationServer) -> None:
    nothing: dict[str, Any] = {"tools": [], "tool_choice": "none", "functions": None, "modalities": ["text"]}
    assert (await generator.chat(**nothing, parallel_tool_calls=False, store=False, metadata={})).is_success


async def test_token_ids_if_asked_for(generator: GenerationServer) -> None:
    choice = (await generator.chat(return_token_ids=True)).json()["choices"][0]
    assert choice["token_ids"] == generator.engine.answers[0] and choice["token_ids"][-1] == EOS


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "this model has no chat template; use /v1/completions"),
        ("{% for x in %}", "broken in line 1"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("", "must not be empty"),
        ("{{ 'a ' * 100000 }}", "more than 128 tokens"),
    ],
)
async def test_templates_that_do_not_work(
    make_generator: MakeGenerator, tmp_path: Path, template: str | None, message: str
) -> None:
    generator = make_generator()
    directory = write_directory(tmp_path / "model", template)
    generator.tokenizer.chat_template = load_chat_template(directory)
    response = await generator.chat()
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert message in error["message"]
    assert (await generator.complete()).is_success
    generator.check_idle()
