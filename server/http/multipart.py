"""Forms with files, `multipart/form-data` (RFC 7578): read within the body's limits, and taken apart."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from server.errors import InvalidBody, InvalidField, UnsupportedEncoding
from server.http.body import receive_body
from server.http.body_limits import HeldBody
from server.http.call import Call

FORM = "multipart/form-data"
MAX_PARTS = 64
STEP_BYTES = 1 << 16
"""Parsed at a time, 16 ms at the very worst; then the event loop has its turn."""


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """`name`: the client's, which says nothing of what is in it."""

    name: str
    content: bytes


FormValue = str | UploadedFile | list[str | UploadedFile]


async def read_form_body(call: Call, held: HeldBody) -> bytes:
    """The body of a route whose media type is FORM. Raises what `receive_body` does."""
    body = await receive_body(call, held)
    await held.settle()
    return body


async def parse_form(call: Call) -> dict[str, FormValue]:
    """The fields by their names. `name[]` may come several times, and is a list without the brackets.

    Raises UnsupportedEncoding, InvalidBody, and InvalidField naming the field.
    """
    parts = Parts(find_boundary(call))
    body = call.take_body()
    for begin in range(0, len(body), STEP_BYTES):
        parts.push(body[begin : begin + STEP_BYTES])
        await asyncio.sleep(0)
    fields: dict[str, FormValue] = {}
    for written, value in parts.finish():
        name = written.removesuffix("[]")
        if name == written and name not in fields:
            fields[name] = value
            continue
        values = fields.setdefault(name, [])
        if name == written or not isinstance(values, list):
            raise InvalidField(f"{name} is there more than once; send it once, or each of several as {name}[]", name)
        values.append(value)
    return fields


def describe_form(schema: type[BaseModel]) -> dict[str, Any]:
    """As JSON's schema, but that fields are there or not, and never null."""
    described = schema.model_json_schema()
    for name, field in described["properties"].items():
        kinds = [kind for kind in field.pop("anyOf", ()) if kind != {"type": "null"}]
        described["properties"][name] = {**(kinds[0] if kinds else {}), **field}
        if field.get("default", "") is None:
            del described["properties"][name]["default"]
    return described


def find_boundary(call: Call) -> bytes:
    """Raises UnsupportedEncoding."""
    media_type, options = parse_options_header(call.header(b"content-type"))
    if media_type != FORM.encode() or not options.get(b"boundary"):
        raise UnsupportedEncoding(
            f"content-type must be {FORM} with a boundary, as HTTP clients set it for files", param="content-type"
        )
    return options[b"boundary"]


class Parts:
    """A form's parts in their order. Mutable: those so far, and what has come of the one under way."""

    def __init__(self, boundary: bytes) -> None:
        self._found: list[tuple[str, str | UploadedFile]] = []
        self._num_begun = 0
        self._has_ended = False
        self._header, self._value, self._disposition = b"", b"", b""
        self._chunks: list[bytes] = []
        with refusing():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._read_header,
                    "on_header_value": self._read_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._read_data,
                    "on_part_end": self._end,
                    "on_end": self._end_form,
                },
            )

    def push(self, chunk: bytes) -> None:
        """Raises InvalidBody, InvalidField."""
        with refusing():
            self._parser.write(chunk)

    def finish(self) -> list[tuple[str, str | UploadedFile]]:
        """Names and values. Raises InvalidBody."""
        if not self._has_ended:
            raise InvalidBody("the form ends too early: the boundary behind its last part is missing")
        return self._found

    def _begin(self) -> None:
        self._num_begun += 1
        if self._num_begun > MAX_PARTS:
            raise InvalidBody(f"the form has more than {MAX_PARTS} parts")
        self._disposition, self._chunks = b"", []

    def _read_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise InvalidBody("a part of the form has no name; its content-disposition is to say it")
        content, file_name = b"".join(self._chunks), options.get(b"filename")
        if file_name is not None:
            self._found.append((name, UploadedFile(file_name.decode(errors="replace"), content)))
            return
        try:
            self._found.append((name, content.decode()))
        except UnicodeDecodeError:
            raise InvalidField(f"{name} is not UTF-8; a file needs a filename", param=name) from None

    def _end_form(self) -> None:
        self._has_ended = True


@contextmanager
def refusing() -> Iterator[None]:
    """Of what is no form, in our words."""
    try:
        yield
    except FormParserError as error:
        raise InvalidBody(f"the body is no form as its content-type says: {error}") from error
