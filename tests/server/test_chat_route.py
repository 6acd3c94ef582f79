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


ASKING = (
    "{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls | length }} calls{% endif %}"
    "{% if m.name is defined %}{{ m.name + ': ' }}{% endif %}{{ m.content + ' ' }}{% endfor %}"
)
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "again"},
]


@pytest.mark.parametrize(
    "empty",
    [
        dict.fromkeys(("tool_calls", "function_call", "audio", "refusal", "name", "tool_call_id")),
        {"tool_calls": [], "annotations": []},
    ],
)
async def test_what_typed_clients_send_back_empty_changes_nothing(
    generator: GenerationServer, tmp_path: Path, empty: dict[str, Any]
) -> None:
    generator.tokenizer.chat_template = load_chat_template(write_directory(tmp_path / "model", ASKING))
    plain, filled = [await generator.chat(messages) for messages in (TURNS, [turn | empty for turn in TURNS])]
    assert filled.status_code == 200, filled.text
    assert filled.json()["usage"]["prompt_tokens"] == plain.json()["usage"]["prompt_tokens"]
    assert generator.engine.jobs[0].prompt == generator.engine.jobs[1].prompt


async def test_an_assistant_may_have_said_nothing(generator: GenerationServer) -> None:
    said = [TURNS[0], {"role": "assistant", "content": None}, TURNS[2]]
    assert (await generator.chat(said)).status_code == 200
    assert "assistant\n<|im_end|>" in decode_prompt(generator)
    response = await generator.chat([{"role": "user", "content": None}])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[0].content")


@pytest.mark.parametrize(
    ("configured", "asked", "prompt"),
    [
        ({}, None, "think"),
        ({}, {"enable_thinking": False}, "answer"),
        ({"enable_thinking": False}, None, "answer"),
        ({"enable_thinking": False, "tone": "kindly"}, {"enable_thinking": True}, "think kindly"),
    ],
)
async def test_variables_for_the_template(
    make_generator: MakeGenerator, tmp_path: Path, configured: dict[str, Any], asked: Any, prompt: str
) -> None:
    """The configuration's, and the request's over them."""
    generator = make_generator(chat={"template_kwargs": configured})
    template = "{{ 'think' if enable_thinking is not defined or enable_thinking else 'answer' }}"
    template += "{% if tone is defined %}{{ ' ' + tone }}{% endif %}"
    generator.tokenizer.chat_template = load_chat_template(write_directory(tmp_path / "model", template))
    assert (await generator.chat(chat_template_kwargs=asked)).status_code == 200
    assert decode_prompt(generator) == prompt


async def test_variables_that_are_not_for_requests(generator: GenerationServer) -> None:
    for kwargs in ({"messages": []}, {"add_generation_prompt": True}):
        response = await generator.chat(chat_template_kwargs=kwargs)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "chat_template_kwargs")


async def test_templates_are_chosen_by_name_and_never_sent(generator: GenerationServer, tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "short.jinja").write_text("briefly: {{ messages[0].content }}")
    generator.tokenizer.chat_template = load_chat_template(directory)
    assert (await generator.chat(chat_template="short")).status_code == 200
    assert decode_prompt(generator) == "briefly: hello"
    assert (await generator.chat(chat_template="default")).status_code == 200
    for wrong in ("long", "{{ 1 + 1 }}"):
        error = (await generator.chat(chat_template=wrong)).json()["error"]
        assert error["param"] == "chat_template" and "it has default, short" in error["message"]


async def test_the_end_of_the_prompt(generator: GenerationServer) -> None:
    begun = [TURNS[0], {"role": "assistant", "content": "Once upon"}]
    ends = {
        "<|im_start|>assistant\n": {},
        "Once upon<|im_end|>\n": {"add_generation_prompt": False},
        "Once upon": {"continue_final_message": True},
    }
    for end, fields in ends.items():
        assert (await generator.chat(begun, **fields)).status_code == 200
        assert decode_prompt(generator).endswith(end)
    response = await generator.chat(begun, continue_final_message=True, add_generation_prompt=True)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "continue_final_message")
    assert "set add_generation_prompt to false" in error["message"]


async def test_the_smallest_nucleus_is_the_most_probable_token(generator: GenerationServer) -> None:
    """OpenAI's range of top_p begins at 0."""
    for answer in (await generator.chat(top_p=0, temperature=2), await generator.complete(top_p=0, top_k=5)):
        assert answer.status_code == 200
        assert (generator.engine.params.temperature, generator.engine.params.top_p) == (0.0, 1.0)


async def test_the_model_may_be_left_out(generator: GenerationServer) -> None:
    """Where one fits."""
    for path, body in (("chat/completions", {"messages": TURNS}), ("completions", {"prompt": "Once"})):
        response = await generator.client.post(f"/v1/{path}", json=body)
        assert response.status_code == 400 and "name one of them in 'model': writer, ids" in response.text
    del generator.state.models["ids"]
    for path, body in (("chat/completions", {"messages": TURNS}), ("completions", {"prompt": "Once"})):
        response = await generator.client.post(f"/v1/{path}", json=body)
        assert (response.status_code, response.json()["model"]) == (200, "writer")


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
