"""Keys: who is let in, to what, and how often; nothing goes round them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import MakeGenerator, RawCall, Server, wait_until
from fake_generator import GenerationServer

from server.api_keys import KeyConfig, KeyRights, hash_key, load_keys
from server.config import ConfigError, HttpConfig
from server.errors import Overloaded
from server.http.app import ROUTES, App
from server.http.keys import Bucket, Key

pytestmark = pytest.mark.anyio

SECRET, OTHER = "0123456789abcdef-one", "0123456789abcdef-two"
BEARER = {"authorization": f"Bearer {SECRET}"}


def lock(server: Any, *keys: dict[str, Any], **options: Any) -> Any:
    """The same server with keys: the first one's secret is SECRET, the second's OTHER."""
    configs = [
        KeyConfig(**{"name": f"key{index}", "hash": hash_key(secret), **rights})
        for index, (rights, secret) in enumerate(zip(keys, (SECRET, OTHER), strict=False))
    ]
    server.state.keys = tuple(configs)
    server.app = App(server.state, **options)
    server.client = httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://padless")
    return server


class TestWhoIsLetIn:
    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": f"Bearer {SECRET}"},
            {"authorization": f"bearer {SECRET}"},
            {"x-api-key": SECRET},
            {"api-key": SECRET},
            {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": SECRET},
            {"authorization": "Bearer none", "x-api-key": SECRET},
        ],
    )
    async def test_known_key(self, server: Server, headers: dict[str, str]) -> None:
        lock(server, {})
        assert (await server.embed_text("word1", headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": "Bearer "},
            {"authorization": SECRET},
            {"authorization": f"Basic {SECRET}"},
            {"authorization": f"Bearer {SECRET}x"},
            {"authorization": f"Bearer {SECRET[:-1]}"},
            {"authorization": f"Bearer {hash_key(SECRET)}"},
            {"x-api-key": "\u00e9".encode("latin-1").decode("latin-1")},
        ],
    )
    async def test_anybody_else(self, server: Server, headers: dict[str, str]) -> None:
        lock(server, {})
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        response = await server.client.post("/v1/embeddings", json={"input": "word1"}, headers=encoded)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_api_key", "authorization")
        assert "Bearer KEY" in error["message"] and SECRET not in error["message"]
        assert server.embed.calls == []

    async def test_every_route_is_closed_but_the_open_ones(self, server: Server) -> None:
        """Also what is no route, before anybody learns that it is none."""
        lock(server, {"admin": True})
        for route in ROUTES:
            path = route.path.replace("{name}", "embedder")
            response = await server.client.request(route.method, path)
            assert (response.status_code == 401) is not route.is_open, path
        probes = {"/health", "/healthz", "/ping", "/ready", "/v2/health/live", "/v2/health/ready"}
        assert {route.path for route in ROUTES if route.is_open} == probes
        for path in ("/docs", "/openapi.json", "/", "/nothing", "/docs/", "//health", "/health/", "/v1/models/a/b"):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "STRANGE"):
                assert (await server.client.request(method, path)).status_code == 401, (method, path)
        assert (await server.client.get("/openapi.json", headers=BEARER)).status_code == 200
        assert (await server.client.get("/nothing", headers=BEARER)).status_code == 404
        assert (await server.client.head("/health")).status_code == 200
        assert (await server.client.post("/health")).status_code == 405

    async def test_errors_have_the_shape_of_the_protocol(self, server: Server) -> None:
        lock(server, {})
        response = await server.client.post("/predict", json={"inputs": "word1"})
        assert response.status_code == 401 and response.json()["error_type"] == "Unauthorized"

    async def test_without_keys_everybody_is(self, server: Server) -> None:
        assert (await server.embed_text("word1", headers={"authorization": "Bearer none"})).status_code == 200
        assert (await server.client.get("/metrics")).status_code == 200

    async def test_admin_pages_are_for_keys_that_say_so(self, server: Server) -> None:
        lock(server, {}, {"admin": True})
        for path in ("/metrics", "/info"):
            assert (await server.client.get(path, headers=BEARER)).status_code == 403
            assert (await server.client.get(path, headers={"x-api-key": OTHER})).status_code == 200

    async def test_on_a_port_of_its_own_no_key_is_needed(self, server: Server) -> None:
        lock(server, {}, routes=[route for route in ROUTES if route.is_admin], needs_keys=False)
        assert (await server.client.get("/info")).status_code == 200
        assert (await server.embed_text("word1", headers=BEARER)).status_code == 404

    async def test_calls_are_counted_by_key(self, server: Server) -> None:
        lock(server, {"name": "search"})
        await server.embed_text("word1", headers=BEARER)
        await server.embed_text("word1", headers={"x-api-key": "somebody's"})
        await server.client.get("/health")
        counted = {
            (sample.labels["key"], sample.labels["outcome"]): sample.value
            for metric in server.state.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "padless_key_requests_total"
        }
        assert counted == {("search", "ok"): 1, ("unknown", "invalid"): 1}


class TestModels:
    async def test_others_do_not_exist(self, server: Server) -> None:
        lock(server, {"models": ["embedder"]}, {})
        listed = (await server.client.get("/v1/models", headers=BEARER)).json()["data"]
        assert [model["id"] for model in listed] == ["embedder"]
        for path in ("classifier", "nothing"):  # the same answer: which of them there are is not told
            response = await server.client.get(f"/v1/models/{path}", headers=BEARER)
            assert response.status_code == 403
            assert response.json()["error"]["message"].replace(path, "X") == (
                "model 'X' is not for this key; it may use embedder"
            )
        listed = (await server.client.get("/v1/models", headers={"x-api-key": OTHER})).json()["data"]
        assert [model["id"] for model in listed] == ["embedder", "classifier"]

    @pytest.mark.parametrize("path", ["/predict", "/tokenize"])
    async def test_no_route_leads_there(self, server: Server, path: str) -> None:
        lock(server, {"models": ["embedder"]})
        response = await server.client.post(path, json={"inputs": "word1", "model": "classifier"}, headers=BEARER)
        assert response.status_code == 403
        assert "model" in response.json()["error"]
        assert server.classify.calls == []

    async def test_only_what_is_left_is_chosen_from(self, server: Server) -> None:
        lock(server, {"models": ["embedder"]})
        response = await server.client.post("/tokenize", json={"inputs": "word1"}, headers=BEARER)
        assert response.status_code == 200  # two models are here, one is for this key
        response = await server.client.post("/predict", json={"inputs": "word1"}, headers=BEARER)
        assert response.status_code == 404 and "classifier" not in response.text

    async def test_draining_is_seen(self, server: Server) -> None:
        lock(server, {"models": ["embedder"]})
        server.state.is_draining = True
        assert (await server.embed_text("word1", headers=BEARER)).status_code == 503


class TestLimits:
    async def test_requests_per_minute(self, server: Server) -> None:
        lock(server, {"requests_per_minute": 2}, {})
        for _ in range(2):
            assert (await server.embed_text("word1", headers=BEARER)).status_code == 200
        response = await server.embed_text("word1", headers=BEARER)
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        assert 25 <= int(response.headers["retry-after"]) <= 30
        assert (await server.embed_text("word1", headers={"x-api-key": OTHER})).status_code == 200

    async def test_tokens_per_minute(self, server: Server) -> None:
        """The call that crosses the limit is answered, those after it wait until what it owes is there."""
        lock(server, {"tokens_per_minute": 10})
        assert (await server.embed_text("word1 word2 word3", headers=BEARER)).status_code == 200  # 5 with its ends
        assert (await server.embed_text(" ".join(["word1"] * 14), headers=BEARER)).status_code == 200
        response = await server.embed_text("word1", headers=BEARER)
        assert response.status_code == 429 and "tokens per minute" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) == 60  # 12 tokens are missing: 72 s, of which clients wait 60
        assert server.state.models["embedder"].admission.num_inputs == 0

    async def test_the_tokenizer_alone_costs_a_request_and_no_tokens(self, server: Server) -> None:
        lock(server, {"tokens_per_minute": 10, "requests_per_minute": 2})
        bucket = server.app.keyring.find(SECRET)._tokens
        for status in (200, 200, 429):
            body = {"inputs": "word1 " * 14, "model": "embedder"}
            assert (await server.client.post("/tokenize", json=body, headers=BEARER)).status_code == status
        assert bucket._level == 10

    async def test_what_is_refused_costs_nothing(self, server: Server) -> None:
        lock(server, {"tokens_per_minute": 10})
        for _ in range(5):
            assert (await server.embed_text("word1 " * 17, headers=BEARER)).status_code == 400  # too long
        assert (await server.embed_text("word1 word2", headers=BEARER)).status_code == 200

    async def test_a_call_is_one_question_however_many_jobs_it_takes(self, server: Server) -> None:
        """An embedder reads a query and documents by themselves."""
        lock(server, {"tokens_per_minute": 10})
        body = {"model": "embedder", "query": "word1 " * 12, "texts": ["word2"]}
        assert (await server.client.post("/rerank", json=body, headers=BEARER)).status_code == 200
        assert (await server.client.post("/rerank", json=body, headers=BEARER)).status_code == 429

    async def test_a_call_whose_second_job_is_refused_costs_nothing(self, server: Server) -> None:
        lock(server, {"tokens_per_minute": 10})
        body = {"model": "embedder", "query": "word1 " * 4, "texts": ["word2 " * 20]}
        assert (await server.client.post("/rerank", json=body, headers=BEARER)).status_code == 422
        assert server.app.keyring.find(SECRET)._tokens._level == pytest.approx(10, abs=0.1)

    async def test_answers_cost_what_they_have(self, make_generator: MakeGenerator) -> None:
        generator = lock(make_generator(), {"tokens_per_minute": 1000})
        generator.say("Once upon a time")
        response = await generator.complete("hello", headers=BEARER)
        usage = response.json()["usage"]
        bucket = generator.app.keyring.find(SECRET)._tokens
        assert 1000 - bucket._level == pytest.approx(usage["total_tokens"], abs=0.5)

    async def test_concurrent_requests(self, server: Server) -> None:
        lock(server, {"concurrent_requests": 2})
        server.embed.gate = asyncio.Event()
        body = json.dumps({"model": "embedder", "input": "word1"}).encode()
        calls = [RawCall(server.app, "/v1/embeddings", body, headers=[(b"x-api-key", SECRET.encode())]) for _ in "ab"]
        await wait_until(lambda: server.embed.num_running == 2)
        response = await server.embed_text("word1", headers=BEARER)
        assert response.status_code == 429 and "2 requests under way" in response.json()["error"]["message"]
        calls[0].disconnect()
        await calls[0].task
        server.embed.gate.set()
        await calls[1].task
        assert calls[1].status == 200
        assert (await server.embed_text("word1", headers=BEARER)).status_code == 200
        assert server.app.keyring.find(SECRET).num_calls == 0

    def test_each_worker_takes_its_part(self) -> None:
        now_s = 0.0
        key = Key(KeyRights(name="a", requests_per_minute=6, concurrent_requests=3), num_workers=2, clock=lambda: now_s)
        for _ in range(3):
            with key.enter():
                pass
        with pytest.raises(Overloaded, match="requests per minute") as raised, key.enter():
            pass
        assert raised.value.retry_after_s == pytest.approx(20)
        now_s = 20.0
        with key.enter(), pytest.raises(Overloaded, match="1 requests under way"), key.enter():
            pass

    def test_bucket_holds_a_minute(self) -> None:
        now_s = 0.0
        bucket = Bucket(60, lambda: now_s)
        now_s = 1e6
        bucket.take(60)
        assert bucket.wait_s(1) == pytest.approx(0)  # filled while nobody looked, before it was emptied
        bucket.take(90)
        assert bucket.wait_s(1) == pytest.approx(31)


class TestPriorityAndSalt:
    @pytest.mark.parametrize(("options", "status"), [({}, 403), ({"allow_priority": True}, 200)])
    async def test_without_keys_the_server_decides(
        self, make_generator: MakeGenerator, options: dict[str, Any], status: int
    ) -> None:
        generator = make_generator(http=options)
        response = await generator.complete(priority=-1)
        assert response.status_code == status
        if status != 200:
            assert response.json()["error"]["param"] == "priority" and "leave it out" in response.text
        assert (await generator.complete(priority=0)).status_code == 200

    async def test_with_keys_each_says_it(self, generator: GenerationServer) -> None:
        lock(generator, {"priority": True}, {})
        assert (await generator.complete(priority=5, headers=BEARER)).status_code == 200
        assert generator.engine.jobs[-1].job.priority == 5
        assert (await generator.complete(priority=5, headers={"x-api-key": OTHER})).status_code == 403

    @pytest.mark.parametrize(("cache", "salts"), [("own", ["key0", "key1"]), ("shared", ["", ""])])
    async def test_keys_share_no_prefixes_unless_they_say_so(
        self, generator: GenerationServer, cache: str, salts: list[str]
    ) -> None:
        lock(generator, {"cache": cache}, {"cache": cache})
        for secret in (SECRET, OTHER):
            assert (await generator.complete(headers={"x-api-key": secret})).status_code == 200
        assert [job.job.salt for job in generator.engine.jobs] == salts


class TestFile:
    def read(self, path: Path, content: Any, environment: dict[str, str] | None = None) -> tuple[KeyConfig, ...]:
        path.write_text(json.dumps(content))
        return load_keys(HttpConfig(api_keys=str(path)), ["a", "b"], environment or {})

    def test_file_and_environment(self, tmp_path: Path) -> None:
        entry = {"name": "search", "hash": hash_key(SECRET), "models": ["a"]}
        keys = self.read(tmp_path / "keys.json", {"keys": [entry]}, {"PADLESS_API_KEY": OTHER})
        assert [(key.name, key.hash, key.admin) for key in keys] == [
            ("search", hash_key(SECRET), False),
            ("environment", hash_key(OTHER), True),
        ]
        assert load_keys(HttpConfig(), ["a"], {}) == ()

    @pytest.mark.parametrize(
        ("entries", "words"),
        [
            ([], ["keys: there is none", "leave server.api_keys out"]),
            (["top-secret-in-plain"], ["keys.0: "]),
            ({"top-secret-in-plain": {}}, ["keys: "]),
            ([{"name": "x", "hash": "top-secret-in-plain"}], ["keys.0.hash", "padless hash-key"]),
            ([{"name": "x", "hash": hash_key(SECRET), "model": ["a"]}], ["keys.0.model", "did you mean 'models'"]),
            ([{"name": "x", "hash": hash_key(SECRET), "models": ["c"]}], ["x has the model 'c'", "are a, b"]),
            ([{"name": "x", "hash": hash_key(name)} for name in "ab"], ["2 have the name 'x'"]),
            ([{"name": name, "hash": hash_key("a")} for name in "xy"], ["2 have the hash", "Give each its own"]),
            ([{"name": "supervisor", "hash": hash_key("a")}], ["'supervisor' has a meaning of its own"]),
            ([{"name": "two words", "hash": hash_key("a")}], ["keys.0.name"]),
            ([{"name": "x", "hash": hash_key("a"), "tokens_per_minute": 0}], ["keys.0.tokens_per_minute"]),
        ],
    )
    def test_mistakes_are_named_and_keys_are_not_shown(self, tmp_path: Path, entries: Any, words: list[str]) -> None:
        with pytest.raises(ConfigError) as raised:
            self.read(tmp_path / "keys.json", {"keys": entries})
        for word in words:
            assert word in str(raised.value)
        assert "top-secret" not in str(raised.value)

    def test_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^server\.api_keys .*none\.yaml: there is no such file"):
            load_keys(HttpConfig(api_keys=str(tmp_path / "none.yaml")), [], {})

    @pytest.mark.parametrize("key", ["", "two words", "caf\u00e9"])
    def test_key_in_the_environment_that_no_header_carries(self, key: str) -> None:
        with pytest.raises(ConfigError, match=r"PADLESS_API_KEY.*unset it"):
            load_keys(HttpConfig(), [], {"PADLESS_API_KEY": key})
