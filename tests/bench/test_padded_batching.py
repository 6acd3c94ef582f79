"""The simulation that compares rules for what shares a padded step: of few inputs, and every rule keeps the limits."""

import numpy as np
import pytest

from bench import padded_batching
from bench.padded_batching import LIMITS, POLICIES, Fifo, Simulation, find_capacity, make_costs
from runtime.batch import ArraySpec
from server.engine.batchers.padded import PaddedBatcher

OUTPUTS = [ArraySpec("embeddings", "float32", ("num_seqs", 1))]


def simulate(
    policy: type[PaddedBatcher], arrivals_s: list[float], lengths: list[int]
) -> tuple[Simulation, list[float]]:
    batcher = policy(LIMITS, make_costs(), OUTPUTS, {"encode": lambda arrays, job, indices: arrays})
    simulation = Simulation(batcher)
    return simulation, simulation.run(np.array(arrivals_s), np.array(lengths)).tolist()


@pytest.mark.parametrize("policy", POLICIES.values())
def test_everybody_is_answered_after_it_came(policy: type[PaddedBatcher]) -> None:
    """And a step that nobody shares takes what the table says, from its arrival."""
    simulation, latencies_s = simulate(policy, [0.0, 0.0, 5.0], [30, 40, 100])
    assert latencies_s[2] == pytest.approx(make_costs().predict(1, 100))
    assert min(latencies_s) > 0 and simulation.num_computed_tokens >= 170


def test_chunks_are_as_large_as_they_may_be() -> None:
    simulation, _ = simulate(Fifo, [0.0] * 70, [30] * 70)
    assert (simulation.num_steps, simulation.num_computed_tokens) == (3, 2100)


def test_programme_computes_less_than_any_other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded_batching, "NUM_INPUTS", 150)
    monkeypatch.setattr(padded_batching, "LOADS", (0.9,))
    rows = padded_batching.measure()
    assert len(rows) == 2 * len(POLICIES)
    for kind in padded_batching.ARRIVALS:
        busy_s = {row["policy"]: row["busy_s"] for row in rows if row["arrivals"] == kind}
        assert min(busy_s, key=busy_s.__getitem__) == "dynamic programme"


def test_capacity_is_that_of_full_rounds() -> None:
    """Somewhere between a token at a time and steps without padding at the rate of the longest row."""
    rate = find_capacity(make_costs(), np.random.default_rng(0))
    mean_seqlen = 50
    assert 0.5 < rate * mean_seqlen * 1.06e-4 < 1.0
