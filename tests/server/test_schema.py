"""What the OpenAPI document says is true: schemathesis derives requests from it, good and bad ones, and checks answers.

`make test-schema` runs 2,000 examples of every route; the default run has a short form.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import build_state
from fake_generator import build_generation_server
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import EngineFinished, FatalError, NonFatalError
from schemathesis.openapi import from_asgi

from server.config import HttpConfig, LimitsConfig
from server.http.app import ROUTES, App
from server.text.tokenizer import Tokenizer

CHECKS = {
    # A schema cannot say that a text has too many tokens for a model, or that top_logprobs needs logprobs.
    "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "422", "429"]},
}


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer, generator_directory: Path, pool: ThreadPoolExecutor) -> App:
    """With models of all tasks."""
    state = build_state(tokenizer, LimitsConfig(), HttpConfig())
    state.models.update(build_generation_server(generator_directory, pool).state.models)
    return App(state)


def find_failures(app: App, path: str, max_examples: int) -> list[str]:
    """All checks, all phases: examples, borders of the schema, random data. The same examples each time."""
    generation = {"max-examples": max_examples, "deterministic": True}
    config = SchemathesisConfig.from_dict({"generation": generation, "checks": CHECKS})
    failures = []
    for event in from_schema(from_asgi("/openapi.json", app, config=config).include(path=path)).execute():
        if isinstance(event, FatalError | NonFatalError):
            failures.append(repr(event))
        if isinstance(event, EngineFinished):
            failures += [f"{failure.operation}: {failure.title}\n{failure.message}" for failure in event.failures]
    return failures


PATHS = sorted(route.path for route in ROUTES if route.is_listed)


@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_described(app: App, path: str) -> None:
    assert find_failures(app, path, 40) == []


@pytest.mark.slow
@pytest.mark.schema
@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_described_at_length(app: App, path: str) -> None:
    assert find_failures(app, path, 2000) == []
