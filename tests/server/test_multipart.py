"""Forms come apart as they were put together, wherever their chunks end, and what is no form is refused."""

import asyncio
import os
import re
from collections.abc import Sequence

import httpx
import pytest
from conftest import MakeServer
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from server.http import multipart
from server.http.api.openai_errors import render_error
from server.http.app import App
from server.http.call import Call, Reply, reply_json
from server.http.multipart import FORM, MAX_PARTS, FormValue, Parts, UploadedFile, parse_form, read_form_body
from server.http.route import Route
from server.http.state import ServerState

pytestmark = pytest.mark.anyio

BOUNDARY = "bound"
CONTENT_TYPE = {"content-type": f"{FORM}; boundary={BOUNDARY}"}
Part = tuple[str, str | None, bytes]
"""Field, file name if it is a file, and content."""


def write_part(name: str, file_name: str | None, content: bytes) -> bytes:
    file = "" if file_name is None else f'; filename="{file_name}"\r\nContent-Type: audio/wav'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def write_form(parts: Sequence[Part]) -> bytes:
    return b"".join(write_part(*part) for part in parts) + f"--{BOUNDARY}--\r\n".encode()


NEARLY = [b"\r\n--boun", b"\r", b"\n", b"\r\n", b"\r\n--", b"--bound", b"--bound--\r\n", b"\x00\xff", b"a"]
CONTENTS = st.lists(st.sampled_from(NEARLY), max_size=6).map(b"".join)
NAMES = st.text(st.sampled_from("abé😀;= ,"), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.tuples(NAMES, st.one_of(st.none(), NAMES), CONTENTS), max_size=4),
    step=st.integers(1, 40),
)
@example(parts=[("file", "a.wav", b"\r\n--boun"), ("file", "", b"")], step=1)
def test_forms_come_apart_wherever_chunks_end(parts: list[Part], step: int) -> None:
    assume(not any(b"\r\n--bound" in b"\r\n" + content for _, _, content in parts))
    wanted: list[tuple[str, str | UploadedFile]] = []
    for name, file_name, content in parts:
        if file_name is not None:
            wanted.append((name, UploadedFile(file_name, content)))
        else:
            assume(b"\xff" not in content)
            wanted.append((name, content.decode()))
    form = write_form(parts)
    found = Parts(BOUNDARY.encode())
    for begin in range(0, len(form), step):
        found.push(form[begin : begin + step])
    assert found.finish() == wanted


def show(value: FormValue) -> object:
    if isinstance(value, UploadedFile):
        return {"name": value.name, "size": len(value.content)}
    return [show(each) for each in value] if isinstance(value, list) else value


async def echo(call: Call, state: ServerState) -> Reply:
    return reply_json({name: show(value) for name, value in (await parse_form(call)).items()})


@pytest.fixture
def client(make_server: MakeServer) -> httpx.AsyncClient:
    """Of a route that tells what was in the form. Bodies have up to 200 kB."""
    state = make_server(http={"max_body_mb": 0.2}).state
    route = Route("POST", "/form", echo, render_error, "", "", media_types=(FORM,), read_body=read_form_body)
    return httpx.AsyncClient(transport=httpx.ASGITransport(App(state, (route,))), base_url="http://padless")


async def test_a_clients_form_with_lists(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/form",
        data={"model": "whisper", "prompt": 'é "x"\r\n', "include[]": ["a", "b"], "one[]": "c"},
        files={"file": ("ä.wav", b"\x00" * 100_000)},
    )
    assert response.json() == {
        "model": "whisper",
        "prompt": 'é "x"\r\n',
        "include": ["a", "b"],
        "one": ["c"],
        "file": {"name": "ä.wav", "size": 100_000},
    }


async def test_commas_of_a_file_are_no_items(client: httpx.AsyncClient) -> None:
    """As they would be of JSON."""
    response = await client.post("/form", files={"file": ("a", b",[{" * 50_000)})
    assert response.json() == {"file": {"name": "a", "size": 150_000}}


WRONG = {
    "no boundary": ({"content-type": FORM}, b"", 415, "content-type", "must be multipart/form-data with a boundary"),
    "JSON": ({"content-type": "application/json"}, b"{}", 415, "content-type", "must be multipart/form-data"),
    "nothing said": ({}, b"", 415, "content-type", "must be multipart/form-data"),
    "a long boundary": ({"content-type": f"{FORM}; boundary={'b' * 300}"}, b"x", 400, None, "Boundary length"),
    "empty": (CONTENT_TYPE, b"", 400, None, "ends too early"),
    "another boundary": (CONTENT_TYPE, b"--other\r\n\r\n", 400, None, "is no form as its content-type says"),
    "cut off": (CONTENT_TYPE, write_form([("file", "a", b"abc")])[:-5], 400, None, "ends too early"),
    "no name": (CONTENT_TYPE, b"--bound\r\nA: b\r\n\r\nc\r\n--bound--\r\n", 400, None, "has no name"),
    "bad header": (CONTENT_TYPE, b"--bound\r\nA b\r\n\r\nc\r\n--bound--\r\n", 400, None, "is no form"),
    "many parts": (CONTENT_TYPE, write_form([("a[]", None, b"")] * (MAX_PARTS + 1)), 400, None, "more than 64 parts"),
    "not UTF-8": (CONTENT_TYPE, write_form([("prompt", None, b"\xff")]), 400, "prompt", "prompt is not UTF-8"),
    "twice": (CONTENT_TYPE, write_form([("a", None, b"")] * 2), 400, "a", r"a is there more than once; send it once"),
    "twice, once with brackets": (
        *(CONTENT_TYPE, write_form([("a", None, b""), ("a[]", None, b"")]), 400, "a"),
        r"each of several as a\[\]",
    ),
    "too large": (CONTENT_TYPE, bytes(200_001), 413, None, "the body is over the limit of 200000 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_no_form_is_refused(client: httpx.AsyncClient, case: str) -> None:
    headers, body, status, param, message = WRONG[case]
    response = await client.post("/form", content=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param) and re.search(message, error["message"])


async def test_large_forms_leave_turns_to_others(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "STEP_BYTES", 1000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    response = await client.post("/form", files={"file": ("a", os.urandom(190_000))})
    counting.cancel()
    assert response.status_code == 200 and turns >= 190
