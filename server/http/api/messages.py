"""Chat messages as clients send them, checked one by one, to what a template reads: roles and texts."""

from typing import Any

from server.errors import EmptyInput, InvalidField
from server.text.chat_template import Message

ROLES = ("developer", "system", "user", "assistant", "tool")
MAX_MESSAGES, MAX_PARTS = 4096, 4096


def read_messages(given: list[dict[str, Any]]) -> list[Message]:
    """Raises EmptyInput, InvalidField naming the message."""
    if not given:
        raise EmptyInput("messages must not be empty", param="messages")
    return [read_message(message, f"messages[{index}]") for index, message in enumerate(given)]


def read_message(given: dict[str, Any], place: str) -> Message:
    """Fields beside role and content pass, for templates that know them. OpenAI's assistants may say nothing."""
    role = given.get("role")
    if role not in ROLES:
        shown = "missing" if role is None else repr(role)[:50]
        raise InvalidField(f"{place}.role is {shown}; it must be one of {', '.join(ROLES)}", param=f"{place}.role")
    if given.get("tool_calls") or given.get("function_call"):
        raise InvalidField(f"{place}.tool_calls: tools are not supported; send text", param=f"{place}.tool_calls")
    content = given.get("content")
    if content is None and role == "assistant":
        content = ""
    return given | {"content": read_content(content, f"{place}.content")}


def read_content(given: Any, place: str) -> str:
    """Parts are joined by line breaks. Raises InvalidField."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise InvalidField(f"{place} must be a text or a list of parts of type text", param=place)
    if len(given) > MAX_PARTS:
        raise InvalidField(f"{place} has {len(given)} parts; the limit is {MAX_PARTS}, join some of them", param=place)
    return "\n".join(read_part(part, f"{place}[{index}]") for index, part in enumerate(given))


def read_part(given: Any, place: str) -> str:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "text":
        shown = f"of type {kind[:50]!r}" if isinstance(kind, str) else "no object with a type"
        raise InvalidField(
            f"{place} is {shown}; models here read text only, as {{'type': 'text', 'text': ...}}", param=place
        )
    text = given.get("text")
    if not isinstance(text, str):
        raise InvalidField(f"{place}.text must be a text", param=f"{place}.text")
    return text
