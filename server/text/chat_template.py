"""Chat messages to a prompt, by the model's own Jinja template, read as transformers reads it. Knows no HTTP.

Templates come with models and may be anybody's: they run in Jinja's sandbox, and see nothing but plain JSON values.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.info import ModelDirectoryError, read_object
from server.errors import InvalidField

logger = logging.getLogger("padless.http")

Message = dict[str, Any]

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
DEFAULT_NAME = "default"
REMEDY = "; use /v1/completions"
NO_TEMPLATE = f"this model has no chat template{REMEDY}"
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""What a template gets from elsewhere than a client's `chat_template_kwargs`."""
END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands behind the message to be continued while the template is rendered; ends with a blank, to see it stripped."""


class GenerationTag(Extension):
    """`{% generation %}` marks for training what the assistant said; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    """For templates that refuse a conversation."""
    raise TemplateError(message)


def format_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def build_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = format_now
    return environment


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as an input of a model. Immutable."""

    messages: tuple[Message, ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the template, such as Qwen3's `enable_thinking`."""
    add_generation_prompt: bool = True
    """End with what makes the assistant speak."""
    continue_final_message: bool = False
    """End inside the last message, for the assistant to go on with it."""
    template: str | None = None
    """One of the model's templates by name; None: the default. Never a text: that would be a client's program."""


def count_message_chars(message: Message) -> int:
    """Of its text, or of its parts' texts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return sum(len(text) for text in texts if isinstance(text, str))


def clean_message(message: Message) -> Message:
    """As if the client had left out what it sent empty: typed clients send back every optional field they have read.

    Templates ask whether a field is there (`'tool_calls' in message`), not whether there is anything in it. An
    assistant's message without content, as it is with `tool_calls`, has an empty one.
    """
    kept = {key: value for key, value in message.items() if value is not None and value not in ([], {})}
    return kept | {"content": kept.get("content", "")}


class Compiled(NamedTuple):
    """A template and the text it was made of."""

    template: Template
    source: str


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`template` None: `problem` says why there is none. `tokens`: `bos_token` and the like, for the template.

    `named`: what else the model has, to be chosen by name.
    """

    template: Template | None = None
    source: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    problem: str = NO_TEMPLATE
    named: Mapping[str, Compiled] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        return self.template is not None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the assistant is to speak. Raises InvalidField for `messages`."""
        return self.render_chat(Chat(tuple(messages)))

    def render_chat(self, chat: Chat) -> str:
        """The prompt, as apply_chat_template of transformers makes it.

        Raises InvalidField for `messages`, `chat_template`, `chat_template_kwargs`, `continue_final_message`.
        """
        check_kwargs(chat.template_kwargs)
        template, source = self.find(chat.template)
        messages = [clean_message(message) for message in chat.messages]
        if "developer" not in source:
            # OpenAI's new name for the system role, which templates older than it do not know.
            messages = [item | {"role": "system"} if item["role"] == "developer" else item for item in messages]
        final = mark_final(messages, chat) if chat.continue_final_message else None
        variables = {**self.tokens, **chat.template_kwargs, "tools": None, "documents": None}
        try:
            text = template.render(messages=messages, add_generation_prompt=chat.add_generation_prompt, **variables)
        except Exception as error:
            # Its own `raise_exception`, or whatever its code stumbles over in these messages.
            raise InvalidField(f"messages do not fit the model's chat template: {error}", param="messages") from error
        return text if final is None else cut_at_mark(text, final)

    def find(self, name: str | None) -> Compiled:
        """By name; None: the default. Raises InvalidField for `chat_template`, `messages`."""
        if name is None or (name == DEFAULT_NAME and self.template is not None):
            if self.template is None:
                raise InvalidField(self.problem, param="messages")
            return Compiled(self.template, self.source)
        if name in self.named:
            return self.named[name]
        known = ", ".join(sorted({*self.named, *([DEFAULT_NAME] if self.is_there else [])})) or "none"
        raise InvalidField(
            f"chat_template {name[:50]!r} is not the name of one of the model's; it has {known}", param="chat_template"
        )


NO_CHAT_TEMPLATE = ChatTemplate()


def compile_template(source: str) -> Compiled:
    """Raises TemplateSyntaxError."""
    return Compiled(build_environment().from_string(source), source)


def check_kwargs(given: Mapping[str, Any], field: str = "chat_template_kwargs") -> None:
    """`field`: what they came in. Raises InvalidField for it."""
    for name in RESERVED:
        if name in given:
            raise InvalidField(
                f"{field} must not have {name}, which comes with the request itself; leave it out", param=field
            )


def mark_final(messages: list[Message], chat: Chat) -> str:
    """The last message's text, which gets the mark behind it in `messages`. Raises InvalidField."""
    if chat.add_generation_prompt:
        raise InvalidField(
            "continue_final_message goes on with the last message, and add_generation_prompt begins a new one; "
            "set add_generation_prompt to false",
            param="continue_final_message",
        )
    content = messages[-1]["content"] if messages else None
    if not isinstance(content, str):
        raise InvalidField(
            "continue_final_message needs a last message with a text as its content", param="continue_final_message"
        )
    messages[-1] = messages[-1] | {"content": content + END_MARK}
    return content


def cut_at_mark(text: str, final: str) -> str:
    """End a rendered chat behind its last message's text; where the template strips that, without its last blanks.

    As render_jinja_template of transformers (utils/chat_template_utils.py). Raises InvalidField.
    """
    place = text.rfind(END_MARK.strip())
    if place < 0 or final.strip() not in text:
        raise InvalidField(
            "continue_final_message: the model's chat template leaves the last message out, or changes it; leave "
            "continue_final_message out",
            param="continue_final_message",
        )
    return text[:place] if text.startswith(END_MARK, place) else text[:place].rstrip()


def load_chat_template(directory: Path, given: str | None = None) -> ChatTemplate:
    """What the directory has, its default being `given`, if that is not None: a name, or a text, which has braces.

    Whatever is wrong with it is for the clients that chat: nobody else needs it.
    """
    try:
        config = read_optional(directory / CONFIG_FILE)
        sources = read_sources(directory, config)
        tokens = read_tokens(read_optional(directory / TOKENS_FILE)) | read_tokens(config)
    except (ModelDirectoryError, OSError, UnicodeDecodeError) as error:
        return without_template(f"this model's chat template cannot be read: {error}")
    if given is not None:
        if given not in sources and "{" not in given:
            return without_template(f"there is no chat template {given!r}; there are {', '.join(sources) or 'none'}")
        sources[DEFAULT_NAME] = sources.get(given, given)
    named, problems = {}, {}
    for name, source in sources.items():
        try:
            named[name] = compile_template(source)
        except TemplateSyntaxError as error:
            problems[name] = f"is broken in line {error.lineno}: {error.message}"
            logger.warning("chat template %s %s", name, problems[name])
    default = named.pop(DEFAULT_NAME, None)
    if default is not None:
        return ChatTemplate(default.template, default.source, tokens, named=named)
    if DEFAULT_NAME in problems:
        problem = f"this model's chat template {problems[DEFAULT_NAME]}{REMEDY}"
        return ChatTemplate(tokens=tokens, problem=problem, named=named)
    if named:
        problem = f"this model has no chat template called default; choose with chat_template: {', '.join(named)}"
        return ChatTemplate(tokens=tokens, problem=problem, named=named)
    return NO_CHAT_TEMPLATE


def without_template(problem: str) -> ChatTemplate:
    logger.warning("%s", problem)
    return ChatTemplate(problem=f"{problem}{REMEDY}")


def read_optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def read_sources(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name. Files of their own win over tokenizer_config.json: a text there, or several with names."""
    given = config.get("chat_template")
    items = given if isinstance(given, list) else [{"name": DEFAULT_NAME, "template": given}]
    pairs = [(item.get("name"), item.get("template")) for item in items if isinstance(item, dict)]
    sources = {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}
    for path in sorted((directory / TEMPLATE_FOLDER).glob("*.jinja")):
        sources[path.stem] = path.read_text(encoding="utf-8")
    if (directory / TEMPLATE_FILE).exists():
        sources[DEFAULT_NAME] = (directory / TEMPLATE_FILE).read_text(encoding="utf-8")
    return sources


def read_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Everything called `..._token`: a text, or an object with it under `content`."""
    found = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found
