"""What the processes have in common at their start."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from server.processes.startup import spare_garbage_collector


@pytest.fixture
def collector() -> Iterator[None]:
    """As it was before, afterwards. It stays off in between, so that nothing but the test's subject collects."""
    threshold = gc.get_threshold()
    gc.disable()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    gc.enable()


class Graph:
    """A cycle, as captured graphs are."""

    def __init__(self) -> None:
        self.owner = self


@pytest.mark.usefixtures("collector")
def test_what_loading_has_left_behind_is_freed_before_the_rest_is_frozen() -> None:
    kept, left_behind = Graph(), weakref.ref(Graph())
    assert left_behind() is not None
    spare_garbage_collector()
    assert left_behind() is None
    assert gc.get_freeze_count() > 0 and kept.owner is kept
