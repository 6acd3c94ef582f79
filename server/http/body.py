"""Reads a request's body within a limit, decompressed if need be, and parses it into a schema.

FastAPI would read without a limit, answer in a shape of its own, and take longer.
"""

import asyncio
import json
import re
import zlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from server.errors import BodyTooLarge, InvalidBody, InvalidField, UnsupportedEncoding
from server.http.call import Call, ClientGone

Schema = TypeVar("Schema", bound=BaseModel)

INFLATE_STEP_BYTES = 1 << 20
"""Decompressed at a time, about 2 ms; then the event loop has its turn."""
MAX_EXPLAINED_BYTES = 1 << 20
"""Broken bodies are parsed a second time for a better message, but not if that takes long."""


def check_media_type(call: Call) -> None:
    """JSON, or nothing said. Pages of other sites can make a browser send text/plain or a form here, and no more: so
    these are refused (the same-origin policy's simple requests). Raises UnsupportedEncoding."""
    given = call.header(b"content-type")
    if given is None or given == "application/json":
        return
    media_type = given.partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/([\w.-]+\+)?json", media_type):
        raise UnsupportedEncoding(
            f"content-type {media_type[:50]!r} is not supported; send application/json", param="content-type"
        )


async def read_body(call: Call, max_bytes: int) -> bytes:
    """The decompressed body. Raises BodyTooLarge, UnsupportedEncoding, InvalidBody, ClientGone."""
    check_length(call.header(b"content-length"), max_bytes)
    encoding = (call.header(b"content-encoding") or "identity").strip().lower()
    if encoding == "identity":
        return await read_plain(call.receive, max_bytes)
    if encoding in ("gzip", "x-gzip"):
        return await Inflater(zlib.MAX_WBITS | 16, max_bytes).read(call.receive)
    if encoding == "deflate":
        return await Inflater(zlib.MAX_WBITS, max_bytes).read(call.receive)
    raise UnsupportedEncoding(
        f"content-encoding {encoding[:50]!r} is not supported; send gzip, deflate or none", param="content-encoding"
    )


def check_length(content_length: str | None, max_bytes: int) -> None:
    """Refuse before a byte is read; a client that lies about it is caught while reading."""
    if content_length is not None and content_length.isdecimal() and int(content_length) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over the limit of {max_bytes} bytes (after decompression); send several requests")


async def read_chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next part of the body, and whether there is more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def read_plain(receive: Receive, max_bytes: int) -> bytes:
    chunk, has_more = await read_chunk(receive)
    chunks, size = [chunk], len(chunk)
    while has_more and size <= max_bytes:
        chunk, has_more = await read_chunk(receive)
        chunks.append(chunk)
        size += len(chunk)
    if size > max_bytes:
        raise too_large(max_bytes)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class Inflater:
    """Decompresses a body as it arrives, and stops at the limit: a bomb costs the limit and no more."""

    def __init__(self, window_bits: int, max_bytes: int) -> None:
        self._stream = zlib.decompressobj(window_bits)
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    async def read(self, receive: Receive) -> bytes:
        """The whole body. Raises BodyTooLarge, InvalidBody, ClientGone."""
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
            self._size += len(part)
            if self._size > self._max_bytes:
                raise too_large(self._max_bytes)
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


def explain_error(schema: type[BaseModel], error: ValidationError, body: bytes) -> InvalidBody | InvalidField:
    """One sentence on what is wrong. Of a union's branches, the one that got furthest is the one that was meant."""
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return explain_json(details[0]["msg"], body)
    if not details[0]["loc"]:
        return InvalidBody("the body must be a JSON object")
    name = str(details[0]["loc"][0])
    meant = max((item for item in details if item["loc"][0] == name), key=lambda item: find_depth(item["loc"]))
    if meant["type"] == "missing":
        return InvalidField(f"{name} is missing", param=name)
    # The name of a union's branch, or the key in an object: both are told by the field's description.
    is_union = any(isinstance(part, str) for part in meant["loc"][1:])
    place = "".join(f"[{index}]" for index in find_depth(meant["loc"]))
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
