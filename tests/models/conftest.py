"""Tiny encoders, captured once for all files that ask for one by its name."""

from functools import cache

import pytest
from tiny_engines import Find, capture_model
from tiny_models import make_model


@pytest.fixture(scope="session")
def find_encoder(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """Those of `tiny_models.CONFIGS`, without a head."""
    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name))))
