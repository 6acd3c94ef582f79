"""Chat messages to a prompt, by the model's own Jinja template, read as transformers reads it. Knows no HTTP.

Templates come with models and may be anybody's: they run in Jinja's sandbox, and see nothing but plain JSON values.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.info import ModelDirectoryError, read_object
from server.errors import InvalidField

logger = logging.getLogger("padless.http")

Message = dict[str, Any]

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
DEFAULT_NAME = "default"
NO_TEMPLATE = "this model has no chat template; use /v1/completions"


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
class ChatTemplate:
    """`template` None: `problem` says why there is none. `tokens`: `bos_token` and the like, for the template."""

    template: Template | None = None
    source: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    problem: str = NO_TEMPLATE

    @property
    def is_there(self) -> bool:
        return self.template is not None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the assistant is to speak. Raises InvalidField for `messages`."""
        if self.template is None:
            raise InvalidField(self.problem, param="messages")
        if "developer" not in self.source:
            # OpenAI's new name for the system role, which templates older than it do not know.
            messages = [item | {"role": "system"} if item["role"] == "developer" else item for item in messages]
        try:
            return self.template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self.tokens
            )
        except Exception as error:
            # Its own `raise_exception`, or whatever its code stumbles over in these messages.
            raise InvalidField(f"messages do not fit the model's chat template: {error}", param="messages") from error


NO_CHAT_TEMPLATE = ChatTemplate()


def load_chat_template(directory: Path) -> ChatTemplate:
    """What the directory has. Whatever is wrong with it is for the clients that chat: nobody else needs it."""
    try:
        config = read_optional(directory / CONFIG_FILE)
        source = read_source(directory, config)
        tokens = read_tokens(read_optional(directory / TOKENS_FILE)) | read_tokens(config)
    except (ModelDirectoryError, OSError, UnicodeDecodeError) as error:
        return without_template(f"this model's chat template cannot be read: {error}")
    if source is None:
        return NO_CHAT_TEMPLATE
    try:
        return ChatTemplate(build_environment().from_string(source), source, tokens)
    except TemplateSyntaxError as error:
        return without_template(f"this model's chat template is broken in line {error.lineno}: {error.message}")


def without_template(problem: str) -> ChatTemplate:
    logger.warning("%s", problem)
    return ChatTemplate(problem=f"{problem}; use /v1/completions")


def read_optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def read_source(directory: Path, config: dict[str, Any]) -> str | None:
    """The file of its own wins, then the one in tokenizer_config.json: a text, or several with names."""
    path = directory / TEMPLATE_FILE
    if path.exists():
        return path.read_text(encoding="utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
        given = named.get(DEFAULT_NAME)
    return given if isinstance(given, str) else None


def read_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Everything called `..._token`: a text, or an object with it under `content`."""
    found = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found
