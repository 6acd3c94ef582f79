"""Reads a request's body within its limits, decompressed if need be, and parses it into a schema.

FastAPI would read without a limit, answer in a shape of its own, and take longer.
"""

import asyncio
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from server.errors import InvalidBody, InvalidField, UnsupportedEncoding
from server.http.body_limits import HeldBody
from server.http.call import Call, ClientGone

Schema = TypeVar("Schema", bound=BaseModel)

MAX_LENGTH_DIGITS = 19
TOO_LONG = {"too_long": "items", "string_too_long": "characters"}
"""pydantic's kinds of error, and what there is too much of."""
INFLATE_STEP_BYTES = 1 << 20
"""Decompressed at a time, about 2 ms; then the event loop has its turn."""
MAX_EXPLAINED_BYTES = 1 << 20
"""Broken bodies are parsed a second time for a better message, but not if that takes long."""


def check_media_type(call: Call, media_types: Sequence[str]) -> None:
    """One of these, any kind of JSON, or nothing said. Pages of other sites can make a browser send text/plain or a
    form here, and no more: so these are refused (the same-origin policy's simple requests). Raises
    UnsupportedEncoding."""
    given = call.header(b"content-type")
    if given is None or given in media_types:
        return
    media_type = given.partition(";")[0].strip().lower()
    if media_type not in media_types and not re.fullmatch(r"application/([\w.-]+\+)?json", media_type):
        raise UnsupportedEncoding(
            f"content-type {media_type[:50]!r} is not supported; send {' or '.join(media_types)}", param="content-type"
        )


async def read_body(call: Call, held: HeldBody) -> bytes:
    """The decompressed body, all of it JSON, of a size that is quick to parse.

    Raises BodyTooLarge, Overloaded, UnsupportedEncoding, InvalidBody, ClientGone.
    """
    body = await receive_body(call, held)
    await held.settle(body)
    return body


async def receive_body(call: Call, held: HeldBody) -> bytes:
    """The decompressed body, whatever is in it. What of it will be parsed is still to be settled.

    Raises BodyTooLarge, Overloaded, UnsupportedEncoding, InvalidBody, ClientGone.
    """
    length = call.header(b"content-length")
    if length is not None and length.isdecimal() and len(length) < MAX_LENGTH_DIGITS:
        held.expect(int(length))  # a client that lies about it is caught while reading
    return await find_reader(call, held)(call.receive)


def find_reader(call: Call, held: HeldBody) -> Callable[[Receive], Awaitable[bytes]]:
    """Raises UnsupportedEncoding."""
    encoding = (call.header(b"content-encoding") or "identity").strip().lower()
    if encoding == "identity":
        return partial(read_plain, held)
    if encoding in ("gzip", "x-gzip"):
        return Inflater(zlib.MAX_WBITS | 16, held).read
    if encoding == "deflate":
        return Inflater(zlib.MAX_WBITS, held).read
    raise UnsupportedEncoding(
        f"content-encoding {encoding[:50]!r} is not supported; send gzip, deflate or none", param="content-encoding"
    )


async def read_chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next part of the body, and whether there is more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def read_plain(held: HeldBody, receive: Receive) -> bytes:
    chunks, has_more = [], True
    while has_more:
        chunk, has_more = await read_chunk(receive)
        held.add(len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class Inflater:
    """Decompresses a body as it arrives, and stops at the limit: a bomb costs the limit and no more."""

    def __init__(self, window_bits: int, held: HeldBody) -> None:
        self._stream = zlib.decompressobj(window_bits)
        self._held = held
        self._parts: list[bytes] = []

    async def read(self, receive: Receive) -> bytes:
        """The whole body. Raises BodyTooLarge, Overloaded, InvalidBody, ClientGone."""
        has_more = True
        while has_more:
            chunk, has_more = await read_chunk(receive)
            await self._inflate(chunk)
        if not self._stream.eof:
            raise InvalidBody("the compressed body ends too early", param="content-encoding")
        return b"".join(self._parts)

    async def _inflate(self, chunk: bytes) -> None:
        while chunk:
            if self._stream.eof:
                raise InvalidBody("there are bytes after the end of the compressed body", param="content-encoding")
            try:
                part = self._stream.decompress(chunk, INFLATE_STEP_BYTES)
            except zlib.error as error:
                raise InvalidBody(f"the body cannot be decompressed: {error}", param="content-encoding") from None
            self._held.add(len(part))
            self._parts.append(part)
            chunk = self._stream.unconsumed_tail or self._stream.unused_data
            if chunk:
                await asyncio.sleep(0)


def parse_body(schema: type[Schema], body: bytes) -> Schema:
    """Raises InvalidBody, InvalidField naming the field."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise explain_error(schema, error, body) from None


def check_object(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """What has been parsed in another way. Raises InvalidField naming the field."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise explain_error(schema, error, b"") from None


def explain_error(schema: type[BaseModel], error: ValidationError, body: bytes) -> InvalidBody | InvalidField:
    """One sentence on what is wrong. Of a union's branches, the one that got furthest is the one that was meant.

    There are few errors, whatever the body: schemas stop at a list's first.
    """
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return explain_json(details[0]["msg"], body)
    if not details[0]["loc"]:
        return InvalidBody("the body must be a JSON object")
    name = str(details[0]["loc"][0])
    mine = [item for item in details if item["loc"][0] == name]
    meant = max(mine, key=lambda item: (item["type"] in TOO_LONG, find_depth(item["loc"])))
    if meant["type"] == "missing":
        return InvalidField(f"{name} is missing", param=name)
    # The name of a union's branch, or the key in an object: both are told by the field's description.
    is_union = any(isinstance(part, str) for part in meant["loc"][1:])
    place = "".join(f"[{index}]" for index in find_depth(meant["loc"]))
    if meant["type"] in TOO_LONG:
        limit = f"the limit is {meant['ctx']['max_length']} {TOO_LONG[meant['type']]}"
        return InvalidField(f"{name}{place} is too long: {limit}", param=name)
    if is_union and not place:
        return InvalidField(f"{name} must be {schema.model_fields[name].description}", param=name)
    hint = "; the items of a list must all be of one kind" if is_union else ""
    return InvalidField(f"{name}{place}: {meant['msg'].removeprefix('Input ')}{hint}", param=name)


def find_depth(loc: tuple[int | str, ...]) -> tuple[int, ...]:
    """Later items and deeper lists are further."""
    return tuple(part for part in loc if isinstance(part, int))


def explain_json(message: str, body: bytes) -> InvalidBody:
    """Lone surrogates are legal to Python's parser, which therefore finds the field they are in."""
    if ("surrogate" in message or "escape" in message) and len(body) <= MAX_EXPLAINED_BYTES:
        name = find_surrogate(body)
        if name is not None:
            return InvalidBody(f"{name} has a lone surrogate (\\ud800 to \\udfff), which is not text", param=name)
    return InvalidBody(f"the body is not valid JSON: {message.removeprefix('Invalid JSON: ')}")


def find_surrogate(body: bytes) -> str | None:
    """The first field of a JSON object whose text holds a lone surrogate."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    lone = re.compile("[\ud800-\udfff]")
    return next((key for key, value in document.items() if lone.search(json.dumps(value, ensure_ascii=False))), None)
