"""Whether an engine computes: a long step is none of its faults, a client's neither; a hanging one is."""

import pytest

from server.engine.health import (
    FAILING_CANARY_INTERVAL_S,
    FIRST_PATIENCE_S,
    LEAST_PATIENCE_S,
    MAX_FAILED_CANARIES,
    PATIENCE_FACTOR,
    SUSPICIOUS_FAILURES,
    Health,
)

INTERVAL_S = 5.0


@pytest.fixture
def health() -> Health:
    """That of an engine that computed its first canary at 100 s."""
    health = Health(INTERVAL_S, last_canary_s=99.0)
    health.begin(99.0, 0.1)
    health.end(100.0, is_good=True, is_canary=True)
    return health


def fail_steps(health: Health, count: int, *, now_s: float = 101.0, is_canary: bool = False) -> None:
    for _ in range(count):
        health.begin(now_s, 0.1)
        health.end(now_s, is_good=False, is_canary=is_canary)


def test_nothing_is_ready_before_its_first_success() -> None:
    health = Health(INTERVAL_S)
    assert health.explain_unready(0.0) == "starting"
    health.begin(0.0, 0.1)
    assert health.explain_unready(1.0) == "starting"


@pytest.mark.parametrize("predicted_s", [0.01, 0.5, 60.0])
def test_step_hangs_once_it_takes_many_times_what_it_should(health: Health, predicted_s: float) -> None:
    health.begin(200.0, predicted_s)
    patience_s = max(LEAST_PATIENCE_S, PATIENCE_FACTOR * predicted_s)
    assert health.explain_hang(200.0 + 0.99 * patience_s) is None
    reason = health.explain_hang(200.0 + 1.01 * patience_s)
    assert reason is not None and f"should have taken {predicted_s:.2f} s" in reason
    health.end(200.0 + 1.01 * patience_s, is_good=True, is_canary=False)
    assert health.explain_hang(1000.0) is None


def test_first_step_of_all_has_more_time(health: Health) -> None:
    """Nothing was timed: it may be a graph's first run, which builds kernels."""
    health.begin(200.0, 0.0)
    assert health.explain_hang(200.0 + 0.99 * FIRST_PATIENCE_S) is None
    assert health.explain_hang(200.0 + 1.01 * FIRST_PATIENCE_S) is not None


def test_idle_engine_never_hangs(health: Health) -> None:
    assert health.explain_hang(1e9) is None


def test_engine_is_ready_while_a_long_step_runs_and_not_once_it_hangs(health: Health) -> None:
    health.begin(101.0, 60.0)
    assert health.explain_unready(101.0 + 60.0) is None
    assert health.explain_unready(101.0 + 599.0) is None
    assert "hangs" in str(health.explain_unready(101.0 + 601.0))


def test_silent_engine_is_not_ready(health: Health) -> None:
    """No step runs and no canary has: its loop does not turn."""
    assert health.explain_unready(100.0 + 3 * INTERVAL_S - 0.1) is None
    assert health.explain_unready(100.0 + 3 * INTERVAL_S) == "no forward pass has succeeded for 15 s"


def test_idle_engine_proves_itself_now_and_then(health: Health) -> None:
    assert not health.is_canary_due(100.0 + 0.99 * INTERVAL_S, is_idle=True)
    assert health.is_canary_due(100.0 + INTERVAL_S, is_idle=True)
    assert not health.is_canary_due(100.0 + 10 * INTERVAL_S, is_idle=False), "a busy one proves itself by its work"
    health.last_canary_s = 100.0 + INTERVAL_S
    assert not health.is_canary_due(100.0 + 1.5 * INTERVAL_S, is_idle=True), "one is under way"


def test_failing_steps_call_for_a_canary_though_the_engine_is_busy(health: Health) -> None:
    fail_steps(health, SUSPICIOUS_FAILURES - 1)
    assert not health.is_canary_due(101.0, is_idle=False)
    fail_steps(health, 1)
    assert health.is_canary_due(101.0, is_idle=False)
    health.last_canary_s = 101.0
    assert not health.is_canary_due(101.0 + 0.9 * FAILING_CANARY_INTERVAL_S, is_idle=False)
    assert health.is_canary_due(101.0 + FAILING_CANARY_INTERVAL_S, is_idle=False)


def test_clients_cannot_make_an_engine_look_sick(health: Health) -> None:
    """Whatever fails of theirs: canaries decide."""
    fail_steps(health, 1000)
    assert health.explain_unready(101.0) is None
    assert health.explain_failures() is None
    health.end(102.0, is_good=True, is_canary=True)
    assert health.num_failed_steps == 0
    assert not health.is_canary_due(102.1, is_idle=False)


def test_clients_cannot_make_a_sick_engine_look_well(health: Health) -> None:
    """A step of theirs that succeeds does not answer for the canary that failed."""
    fail_steps(health, 1, is_canary=True)
    health.end(101.0, is_good=True, is_canary=False)
    assert health.explain_unready(101.0) == "the last 1 canaries have failed"
    assert health.is_canary_due(102.0, is_idle=False)


def test_failed_canaries_make_it_unready_and_so_many_in_a_row_end_it(health: Health) -> None:
    fail_steps(health, MAX_FAILED_CANARIES - 1, is_canary=True)
    assert "canaries have failed" in str(health.explain_unready(101.0))
    assert health.explain_failures() is None
    health.end(102.0, is_good=True, is_canary=True)
    assert health.explain_unready(102.0) is None
    fail_steps(health, MAX_FAILED_CANARIES, is_canary=True)
    assert health.explain_failures() == "3 canaries in a row have failed"
