"""What the OpenAPI document says is true: schemathesis derives requests from it, good and bad ones, and checks answers.

`make test-schema` runs 2,000 examples of every route; the default run has a short form.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import EMBEDDER, INFOS, SPARSE, build_state
from fake_generator import build_generation_server
from fake_hearer import SOUND, Hearer, build_hearer
from hypothesis import strategies as st
from schemathesis import openapi
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import EngineFinished, FatalError, NonFatalError, ScenarioFinished
from schemathesis.openapi import from_dict
from test_multi_vector_routes import COLBERT

from server.config import HttpConfig, LimitsConfig
from server.http.app import ROUTES, App
from server.http.docs import build_docs
from server.text.tokenizer import Tokenizer

ALONE = {"/tokenize": "embedder", "/decode": "embedder", "/": "embedder"} | dict.fromkeys(
    ("/embed_all", "/pooling", "/v1/multi-vector"), "colbert"
)
"""Paths that one model answers."""
CHECKS = {
    # A schema cannot say that a text has too many tokens for a model, or that top_logprobs needs logprobs.
    "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "422", "429", "504"]},
    # Who allows a millisecond gets what was asked for.
    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]},
}


openapi.format("binary", st.sampled_from([SOUND, SOUND, SOUND, SOUND[:60], b"no sound"]))


@pytest.fixture(scope="module")
def app(
    tokenizer: Tokenizer, generator_directory: Path, pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> App:
    """With models of all tasks."""
    tokens = replace(EMBEDDER, task="token_embed", head="tokens", normalize=False)
    infos = {**INFOS, "splade": SPARSE, "colbert": COLBERT}
    state = build_state(tokenizer, LimitsConfig(), HttpConfig(allow_priority=True), infos, {"embedder": [tokens]})
    generators = build_generation_server(generator_directory, pool).state.models
    state.models |= {name: generators[name] for name in ("writer", "translator")}
    state.models["whisper"] = build_hearer(pool, tmp_path_factory.mktemp("whisper"), Hearer())
    return App(state)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What every application answers at /openapi.json: it tells of routes, and not of models."""
    return build_docs(ROUTES).openapi()


def keep_models(app: App, path: str) -> App:
    """So that a request need not name one."""
    alone = ALONE.get(path)
    models = {
        name: model for name, model in app.state.models.items() if name == alone or not (alone or name == "colbert")
    }
    return App(replace(app.state, models=models))


def find_failures(
    app: App, document: Mapping[str, Any], path: str, max_examples: int, *, has_borders: bool = True
) -> list[str]:
    """All checks: examples, random data, and the borders of the schema. The same examples each time."""
    config = SchemathesisConfig.from_dict(
        {
            "generation": {"max-examples": max_examples, "deterministic": True},
            "phases": {"coverage": {"enabled": has_borders}},
            "checks": CHECKS,
            "parameters": {"name": "embedder"},
        }
    )
    schema = from_dict({**document, "paths": {path: document["paths"][path]}}, config=config)
    schema.app, schema.location = keep_models(app, path), "/openapi.json"
    failures, statuses = [], set()
    for event in from_schema(schema).execute():
        if isinstance(event, FatalError | NonFatalError):
            failures.append(repr(event))
        if isinstance(event, EngineFinished):
            failures += [str(failure) for failure in event.failures]
        if isinstance(event, ScenarioFinished):
            checks = [check for checks in event.recorder.checks.values() for check in checks]
            failures += [f"{item.failure}\n{item.code_sample}" for check in checks if (item := check.failure_info)]
            statuses |= {item.response.status_code for item in event.recorder.interactions.values() if item.response}
    assert 200 in statuses, "No request was good, so little has been tried."
    return failures


PATHS = sorted({route.path for route in ROUTES if route.is_listed})


@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_described(app: App, document: dict[str, Any], path: str) -> None:
    assert find_failures(app, document, path, 10, has_borders=False) == []


@pytest.mark.slow
@pytest.mark.schema
@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_described_at_length(app: App, document: dict[str, Any], path: str) -> None:
    assert find_failures(app, document, path, 2000) == []
