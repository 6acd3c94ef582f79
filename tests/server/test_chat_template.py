"""Templates of the shapes that models come with, rendered as transformers renders them."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_generator import CHATML, build_byte_level
from transformers import PreTrainedTokenizerFast

from server.errors import InvalidField
from server.text.chat_template import Chat, clean_message, count_message_chars, load_chat_template
from server.text.inputs import Size, measure
from server.text.tokenizer import Tokenizer

LLAMA_2 = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}
    {%- set system_message = messages[0]['content'] %}
{%- else %}
    {%- set loop_messages = messages %}
    {%- set system_message = false %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system_message != false %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
LLAMA_3 = """\
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- bos_token }}
{% for message in messages %}
    {% if message.role == 'user' %}
        {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {% else %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
DATED = (
    "Today is {{ strftime_now('%Y, month %m') }}.\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
LOOPS = """\
{% set ns = namespace(count=0, last='') %}
{% for message in messages %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
  {% set ns.count = ns.count + 1 %}
  {% set ns.last = message.content %}
  {% if ns.count == 2 %}{% break %}{% endif %}
  <{{ message.content | tojson }}>
{% endfor %}
{% macro shout(text) %}{{ text | upper }}{% endmacro %}
{{ ns.count }} {{ shout(ns.last) }} {{ messages | tojson(indent=2) }} {{ tools }} {{ unk_token | default('none') }}
"""
TEMPLATES = {"ChatML": CHATML, "Llama 2": LLAMA_2, "Llama 3": LLAMA_3, "dated": DATED, "loops": LOOPS}
CHATS = {
    "one": [{"role": "user", "content": "  hello <b>&'\"\n"}],
    "system": [{"role": "system", "content": "Be é."}, {"role": "user", "content": "hi"}],
    "turns": [
        {"role": "user", "content": "{{ bos_token }}"},
        {"role": "assistant", "content": "yes "},
        {"role": "user", "content": "你好 <|im_end|>"},
    ],
}


def write(directory: Path, template: Any, **config: Any) -> Path:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"} | config
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    build_byte_level().save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers(tmp_path: Path, name: str, chat: str) -> None:
    directory = write(tmp_path, TEMPLATES[name], unk_token={"__type": "AddedToken", "content": "<unk>"})
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = theirs.apply_chat_template(CHATS[chat], tokenize=False, add_generation_prompt=True)
    text = load_chat_template(directory).render(CHATS[chat])
    assert text == expected
    ids = theirs.apply_chat_template(CHATS[chat], add_generation_prompt=True, return_dict=False)
    assert build_byte_level().encode(text, add_special_tokens=False).ids == ids


def test_a_conversation_the_template_refuses(tmp_path: Path) -> None:
    template = load_chat_template(write(tmp_path, LLAMA_2))
    with pytest.raises(InvalidField, match="roles must alternate") as caught:
        template.render([{"role": "assistant", "content": "hello"}])
    assert caught.value.param == "messages"


def test_where_templates_are(tmp_path: Path) -> None:
    """A file of its own wins; of several with names the default one counts."""
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    directory = write(tmp_path, named)
    assert load_chat_template(directory).render(CHATS["one"]) == "default"
    (directory / "chat_template.jinja").write_text("file é {{ bos_token }}")
    assert load_chat_template(directory).render(CHATS["one"]) == "file é <s>"


def test_special_tokens_of_the_older_file(tmp_path: Path) -> None:
    directory = write(tmp_path, "{{ bos_token }}{{ eos_token }}{{ pad_token }}", eos_token=None)
    tokens = {"bos_token": "<other>", "eos_token": {"content": "</s>"}, "pad_token": None, "additional": ["x"]}
    (directory / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert load_chat_template(directory).render(CHATS["one"]) == "<s></s>"


def test_developers_are_the_system_where_the_template_is_older(tmp_path: Path) -> None:
    chat = [{"role": "developer", "content": "Be."}]
    assert "<|im_start|>system\n" in load_chat_template(write(tmp_path, CHATML)).render(chat)
    knows = "{{ messages[0].role }} {# developer #}"
    assert load_chat_template(write(tmp_path, knows)).render(chat) == "developer "


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "this model has no chat template; use /v1/completions"),
        ("{}", "this model has no chat template"),
        ('{"chat_template": [{"name": "rag", "template": "x"}]}', "this model has no chat template"),
        ("{", "cannot be read: .*tokenizer_config.json"),
        ('{"chat_template": "{% if %}"}', "is broken in line 1: .*; use /v1/completions"),
        ('{"chat_template": "{{ x | no_such_filter }}"}', "No filter named"),
    ],
)
def test_no_template_is_a_matter_for_those_who_chat(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    template = load_chat_template(tmp_path)
    assert not template.is_there
    with pytest.raises(InvalidField, match=problem):
        template.render(CHATS["one"])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ messages.clear() }}",
        "{% for a in range(999999999) %}x{% endfor %}",
        "{{ messages[0].update(role='x') }}",
    ],
)
def test_templates_stay_in_their_sandbox(tmp_path: Path, attack: str) -> None:
    chat = [{"role": "user", "content": "hello"}]
    with pytest.raises(InvalidField):
        load_chat_template(write(tmp_path, attack)).render(chat)
    assert chat == [{"role": "user", "content": "hello"}]


ASKING = """\
{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls | length }}{% endif %}
{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}: {{ m.content + '' }}
{% endfor %}{{ messages | tojson }}
"""


@pytest.mark.parametrize(
    "empty",
    [
        dict.fromkeys(("tool_calls", "function_call", "audio", "refusal", "name", "tool_call_id")),
        {"tool_calls": [], "function_call": {}},
        {"annotations": [], "reasoning_content": None},
    ],
)
def test_fields_sent_back_empty_are_as_if_left_out(tmp_path: Path, empty: dict[str, Any]) -> None:
    template = load_chat_template(write(tmp_path, ASKING))
    chat = CHATS["turns"]
    assert template.render([message | empty for message in chat]) == template.render(chat)


def test_clean_message_keeps_what_says_something() -> None:
    message = {"role": "assistant", "name": "Ann", "content": None, "tool_calls": [{"id": "1"}], "refusal": None}
    cleaned = {"role": "assistant", "name": "Ann", "content": "", "tool_calls": [{"id": "1"}]}
    assert clean_message(message) == cleaned
    assert message["refusal"] is None and list(clean_message({"content": "a", "role": "user"})) == ["content", "role"]


THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %}"
)
THINKING += "<think></think>{% endif %}{% if add_generation_prompt %}>{% endif %}{{ bos_token }}"


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}, {"enable_thinking": True, "bos_token": "x"}])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_variables_for_the_template(tmp_path: Path, kwargs: dict[str, Any], add_generation_prompt: bool) -> None:
    directory = write(tmp_path, THINKING)
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = theirs.apply_chat_template(
        CHATS["one"], tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
    )
    chat = Chat(tuple(CHATS["one"]), kwargs, add_generation_prompt=add_generation_prompt)
    assert load_chat_template(directory).render_chat(chat) == expected


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_variables_that_are_fields_of_their_own(tmp_path: Path, name: str) -> None:
    template = load_chat_template(write(tmp_path, CHATML))
    with pytest.raises(InvalidField, match=name) as caught:
        template.render_chat(Chat(tuple(CHATS["one"]), {name: []}))
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("final", ["Once upon", "Once upon ", "  Once\n", "hello"])
@pytest.mark.parametrize("name", ["ChatML", "Llama 2", "Llama 3"])
def test_going_on_with_the_last_message(tmp_path: Path, name: str, final: str) -> None:
    directory = write(tmp_path, TEMPLATES[name])
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": final}]
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    asked = Chat(tuple(chat), add_generation_prompt=False, continue_final_message=True)
    assert load_chat_template(directory).render_chat(asked) == expected
    assert chat[-1]["content"] == final


@pytest.mark.parametrize(
    ("template", "messages", "add_generation_prompt", "problem"),
    [
        (CHATML, CHATS["one"], True, "set add_generation_prompt to false"),
        (CHATML, [], False, "needs a last message"),
        ("{{ messages[0].content }}", CHATS["turns"], False, "leaves the last message out"),
    ],
)
def test_nothing_to_go_on_with(
    tmp_path: Path, template: str, messages: list[Any], add_generation_prompt: bool, problem: str
) -> None:
    chat = Chat(tuple(messages), add_generation_prompt=add_generation_prompt, continue_final_message=True)
    with pytest.raises(InvalidField, match=problem) as caught:
        load_chat_template(write(tmp_path, template)).render_chat(chat)
    assert caught.value.param == "continue_final_message"


def test_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "rag {{ bos_token }}"}, {"name": "broken", "template": "{% if %}"}]
    directory = write(tmp_path, [*named, {"name": "default", "template": "default"}])
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "short.jinja").write_text("short")
    template = load_chat_template(directory)
    found = {name: template.render_chat(Chat((), template=name)) for name in (None, "default", "rag", "short")}
    assert found == {None: "default", "default": "default", "rag": "rag <s>", "short": "short"}
    for wrong in ("tools", "{{ 1 + 1 }}"):
        with pytest.raises(InvalidField, match="it has default, rag, short") as caught:
            template.render_chat(Chat((), template=wrong))
        assert caught.value.param == "chat_template"


def test_the_operators_template_is_the_default(tmp_path: Path) -> None:
    directory = write(tmp_path, [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default"}])
    assert load_chat_template(directory, "rag").render(CHATS["one"]) == "rag"
    assert load_chat_template(directory, "given {{ eos_token }}").render(CHATS["one"]) == "given </s>"
    missing = load_chat_template(directory, "tools")
    assert not missing.is_there and "no chat template 'tools'; there are rag, default" in missing.problem


def test_a_chat_is_an_input(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    directory = write(tmp_path, CHATML)
    raw = build_byte_level()
    options: dict[str, Any] = {"vocab_size": raw.get_vocab_size(), "type_vocab_size": 1, "pool": pool}
    tokenizer = Tokenizer(raw, max_input_tokens=400, chat_template=load_chat_template(directory), **options)
    chat = Chat(tuple(CHATS["turns"]))
    first, second = asyncio.run(tokenizer.encode([chat, "hello"], truncation="error", field="messages"))
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    assert first.input_ids.tolist() == theirs.apply_chat_template(
        CHATS["turns"], add_generation_prompt=True, return_dict=False
    )
    assert second.input_ids.tolist() == raw.encode("hello").ids
    with pytest.raises(InvalidField, match=r"^messages do not fit") as caught:
        asyncio.run(tokenizer.encode([Chat(({"role": "user", "content": 1},))], truncation="error", field="x"))
    assert caught.value.param == "messages"


def test_characters_of_chats_are_counted() -> None:
    parts = [{"type": "text", "text": "four"}, {"type": "image"}, 7]
    assert [count_message_chars({"content": content}) for content in ("abc", None, parts)] == [3, 0, 4]
    assert measure([Chat(({"role": "user", "content": "abc"}, {"role": "user"})), "de", [1, 2]]) == Size(5, 2, True)
