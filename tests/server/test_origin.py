"""Which web pages may ask: none but the server's own, unless the configuration says so."""

import pytest
from conftest import MakeServer, Server
from test_keys import lock

from server.config import HttpConfig

pytestmark = pytest.mark.anyio

PAGE = "https://app.example.org"


@pytest.mark.parametrize("origin", [PAGE, "null", "http://padless.example.org", "http://padless:8000", "file://"])
async def test_other_pages_are_refused(server: Server, origin: str) -> None:
    response = await server.embed_text("word1", headers={"origin": origin})
    assert response.status_code == 403 and response.json()["error"]["param"] == "origin"
    assert "access-control-allow-origin" not in response.headers
    assert server.embed.calls == []
    for path in ("/health", "/docs", "/nothing"):
        assert (await server.client.get(path, headers={"origin": origin})).status_code == 403


async def test_own_pages_and_programs_are_not(server: Server) -> None:
    for headers in ({}, {"origin": "http://padless"}, {"origin": "https://padless"}):
        response = await server.embed_text("word1", headers=headers)
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("allowed", [PAGE, "*"])
async def test_configured_pages_may_ask(make_server: MakeServer, allowed: str) -> None:
    server = make_server(http={"cors_origins": [allowed]})
    response = await server.embed_text("word1", headers={"origin": PAGE})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["vary"] == "origin"
    response = await server.embed_text(5, headers={"origin": PAGE})  # a page may read why not
    assert response.status_code == 400 and response.headers["access-control-allow-origin"] == PAGE


async def test_preflight_needs_no_key_and_what_follows_does(make_server: MakeServer) -> None:
    server = lock(make_server(http={"cors_origins": [PAGE]}), {})
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = await server.client.options("/v1/embeddings", headers=asked)
    assert response.status_code == 200 and response.content == b""
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-methods"] == "GET, POST"
    assert response.headers["access-control-allow-headers"] == "authorization,content-type"
    response = await server.embed_text("word1", headers={"origin": PAGE})
    assert response.status_code == 401 and response.headers["access-control-allow-origin"] == PAGE
    response = await server.client.options("/v1/embeddings", headers=asked | {"origin": "https://example.org"})
    assert response.status_code == 403
    assert (await server.client.options("/v1/embeddings")).status_code == 401


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "https://", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        HttpConfig(cors_origins=(origin,))
