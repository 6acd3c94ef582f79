"""Turns on shared cores: shares are kept whatever the steps' lengths, nobody starves, and idling saves nothing up."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from server.engine.turns import MAX_CREDIT_S, Turns, table_size

TERM_S = 1.0
KEEP_S = 0.002


@dataclass
class SimulatedEngine:
    """`gap_s` lies between a step and the next. Mutable: when it asks next, what it has had, and how long it waited."""

    step_s: Callable[[], float]
    gap_s: Callable[[], float] = lambda: 0.0
    ready_s: float = 0.0
    used_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)


def simulate(turns: Turns, engines: list[SimulatedEngine], *, num_steps: int, now_s: float = 0.0) -> float:
    """Steps on a clock of our own, each in a turn as device threads take them. Returns the time of the end."""
    for _ in range(num_steps):
        now_s = max(now_s, min(engine.ready_s for engine in engines))
        for seat, engine in enumerate(engines):
            if engine.ready_s <= now_s:
                turns.ask(seat, TERM_S, now_s)
        holder = turns.holder
        assert holder is not None
        engine = engines[holder]
        engine.waits_s.append(now_s - engine.ready_s)
        step_s = engine.step_s()
        engine.used_s += step_s
        now_s += step_s
        gap_s = engine.gap_s()
        engine.ready_s = now_s + gap_s
        for seat, other in enumerate(engines):  # who came while it ran
            if other.ready_s <= now_s and seat != holder:
                turns.ask(seat, 1000.0, now_s - step_s)
        turns.settle(holder, step_s)
        is_kept = turns.keep(holder)
        if is_kept:
            kept_s = min(gap_s, KEEP_S)
            now_s += kept_s
            turns.settle(holder, kept_s)
        if not is_kept or gap_s > KEEP_S:
            turns.leave(holder, now_s)
    return now_s


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def make_turns(*shares: float) -> Turns:
    return Turns([0.0] * table_size(len(shares)), shares, lambda seat: True, lambda seat: None)


@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0), (0.5, 2.0), (1.0, 2.0, 5.0)])
def test_shares_are_kept_over_steps_of_different_lengths(shares: tuple[float, ...], rng: random.Random) -> None:
    turns = make_turns(*shares)
    scales = [0.002, 0.024, 0.007][: len(shares)]
    engines = [SimulatedEngine(lambda scale=scale: scale * rng.uniform(0.5, 2.0)) for scale in scales]  # type: ignore[misc]
    simulate(turns, engines, num_steps=1000)
    used_s = sum(engine.used_s for engine in engines)
    for engine, share in zip(engines, shares, strict=True):
        assert engine.used_s / used_s == pytest.approx(share / sum(shares), rel=0.05)


def test_who_is_away_between_steps_keeps_its_turn() -> None:
    """A decoder of 2 ms steps has half of the cores beside an encoder of 24 ms steps, its own gaps counted."""
    decoder, encoder = SimulatedEngine(lambda: 0.002, lambda: 0.0005), SimulatedEngine(lambda: 0.024)
    end_s = simulate(make_turns(1.0, 1.0), [decoder, encoder], num_steps=1000)
    assert encoder.used_s / end_s == pytest.approx(0.5, rel=0.05)
    assert decoder.used_s / end_s == pytest.approx(0.5 * 0.8, rel=0.05)


def test_who_is_held_up_between_steps_gets_its_share_all_the_same(rng: random.Random) -> None:
    """Every twentieth gap is longer than a turn is kept for."""
    decoder = SimulatedEngine(lambda: 0.002, lambda: 0.004 if rng.random() < 0.05 else 0.0005)
    encoder = SimulatedEngine(lambda: 0.024)
    end_s = simulate(make_turns(1.0, 1.0), [decoder, encoder], num_steps=1000)
    assert encoder.used_s / end_s == pytest.approx(0.5, rel=0.05)


def test_nobody_waits_longer_than_its_share_demands(rng: random.Random) -> None:
    engines = [SimulatedEngine(lambda: rng.uniform(0.001, 0.03)) for _ in range(4)]
    simulate(make_turns(1.0, 1.0, 1.0, 1.0), engines, num_steps=1000)
    assert max(wait_s for engine in engines for wait_s in engine.waits_s) <= 4 * 2 * 0.03


def test_idling_saves_up_no_more_than_a_little_credit() -> None:
    turns = make_turns(1.0, 1.0)
    busy, late = SimulatedEngine(lambda: 0.01), SimulatedEngine(lambda: 0.01, ready_s=50.0)
    now_s = simulate(turns, [busy, late], num_steps=5000)
    had_s = busy.used_s
    assert late.used_s == 0.0
    simulate(turns, [busy, late], num_steps=100, now_s=now_s)
    assert late.used_s - (busy.used_s - had_s) == pytest.approx(MAX_CREDIT_S, abs=0.021)


def test_who_comes_late_does_not_wait_for_what_others_have_used() -> None:
    turns = make_turns(1.0, 1.0)
    busy, late = SimulatedEngine(lambda: 0.01), SimulatedEngine(lambda: 0.01, ready_s=50.0)
    simulate(turns, [busy, late], num_steps=5010)
    assert late.waits_s[0] <= 0.011


def test_a_dead_holder_loses_its_turn_at_once() -> None:
    dead: set[int] = set()
    turns = Turns([0.0] * table_size(2), (1.0, 1.0), lambda seat: seat not in dead, lambda seat: None)
    assert turns.ask(0, TERM_S, 0.0)
    assert not turns.ask(1, TERM_S, 0.0)
    dead.add(0)
    assert turns.ask(1, TERM_S, 0.01)


def test_the_dead_that_wait_are_passed_over() -> None:
    woken: list[int] = []
    turns = Turns([0.0] * table_size(3), (1.0, 1.0, 1.0), lambda seat: seat != 1, woken.append)
    assert turns.ask(0, TERM_S, 0.0)
    assert not turns.ask(1, TERM_S, 0.0)
    assert not turns.ask(2, TERM_S, 0.0)
    turns.settle(0, 0.01)
    turns.leave(0, 0.01)
    assert turns.holder == 2
    assert woken == [2]


def test_a_turn_ends_with_its_term() -> None:
    """Whoever hangs stops nobody; what it used is charged all the same."""
    turns = make_turns(1.0, 1.0)
    assert turns.ask(0, TERM_S, 0.0)
    assert not turns.ask(1, TERM_S, 0.5)
    assert turns.ask(1, TERM_S, TERM_S)
    turns.settle(0, 1.5)
    turns.leave(0, 1.5)
    assert turns.holder == 1
    assert not turns.ask(0, TERM_S, 1.5)
    assert turns.keep(1)
