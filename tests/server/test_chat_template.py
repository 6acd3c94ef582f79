"""Templates of the shapes that models come with, rendered as transformers renders them."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_generator import CHATML, build_byte_level
from transformers import PreTrainedTokenizerFast

from server.errors import InvalidField
from server.text.chat_template import load_chat_template

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
