"""The memory of a device, divided among its engines: budgets and weights first, and never more than there is."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import ConfigError
from server.processes.memory import find_cpu_bytes
from server.processes.memory_plan import SHARES, Claim, plan_memory

MB = 2**20
SIZES = st.integers(0, 10**12)
DEVICES = ("cpu", "cuda:0", "cuda:1")


def cache(model: str, *, weights: int = 0, budget: int | None = None, replicas: int = 1, device: str = "cpu") -> Claim:
    budget_bytes = None if budget is None else budget * MB
    return Claim(model, device, replicas, weights * MB, has_cache=True, budget_bytes=budget_bytes)


def encoder(model: str, weights: int, replicas: int = 1) -> Claim:
    return Claim(model, "cpu", replicas, weights * MB)


def test_one_generator_gets_its_weights_and_half_of_the_rest() -> None:
    assert plan_memory([cache("chat", weights=200)], {"cpu": 1000 * MB}) == [600 * MB]


def test_budgets_and_all_weights_come_first() -> None:
    """Of 1000: 100 + 2 x 50 for what is fixed, 2 x 100 for weights; half of the other 600 are for two engines."""
    claims = [cache("fixed", weights=30, budget=100), encoder("vectors", 50, 2), cache("chat", weights=100, replicas=2)]
    assert plan_memory(claims, {"cpu": 1000 * MB}) == [100 * MB, None, 250 * MB]


def test_replicas_that_map_one_file_need_it_once() -> None:
    claims = [replace(encoder("vectors", 300, 3), shares_weights=True), cache("chat", weights=100)]
    assert plan_memory(claims, {"cpu": 1000 * MB}) == [None, 400 * MB]
    several = replace(cache("chat", weights=100, replicas=3), shares_weights=True)
    assert plan_memory([several], {"cpu": 1000 * MB}) == [250 * MB]


def test_devices_are_apart() -> None:
    claims = [cache("a"), *(cache(name, device="cuda:0") for name in "bc"), cache("c", device="cuda:1", replicas=3)]
    available = {"cpu": 10 * MB, "cuda:0": 1000 * MB, "cuda:1": 600 * MB}
    assert plan_memory(claims, available) == [5 * MB, 450 * MB, 450 * MB, 180 * MB]


def test_what_does_not_fit_on_one_device_is_no_others() -> None:
    claims = [cache("a", budget=400, device="cuda:0"), cache("a", budget=400, device="cuda:1")]
    with pytest.raises(ConfigError, match=r"engine.device cuda:1 has 300.0 MB .* need 400.0 MB: a 1 x 400.0 MB"):
        plan_memory(claims, {"cuda:0": 900 * MB, "cuda:1": 300 * MB})


def test_nothing_is_claimed() -> None:
    assert plan_memory([], {}) == []


def test_what_does_not_fit_is_refused_by_name() -> None:
    claims = [cache("chat", weights=9, budget=300, replicas=2), encoder("vectors", 50), cache("story", weights=70)]
    with pytest.raises(ConfigError) as refused:
        plan_memory(claims, {"cpu": 719 * MB})
    assert str(refused.value) == (
        "engine.device cpu has 719.0 MB of memory available, and its models need 720.0 MB: chat 2 x 300.0 MB "
        "(engine.kv_cache.budget_mb), vectors 1 x 50.0 MB (weights), story 1 x 70.0 MB (weights). Lower "
        "engine.kv_cache.budget_mb of chat or engine.replicas, or serve fewer models there"
    )
    assert plan_memory(claims, {"cpu": 720 * MB}) == [300 * MB, None, 70 * MB]


@st.composite
def draw_claims(draw: st.DrawFn) -> list[Claim]:
    count = draw(st.integers(0, 6))
    claims = []
    for index in range(count):
        has_cache = draw(st.booleans())
        budget = draw(st.none() | SIZES) if has_cache else None
        device = draw(st.sampled_from(DEVICES))
        replicas, weights, shares_weights = draw(st.integers(1, 8)), draw(SIZES), draw(st.booleans())
        claims.append(Claim(f"m{index}", device, replicas, weights, shares_weights, has_cache, budget))
    return claims


@given(draw_claims(), st.fixed_dictionaries({device: st.integers(0, 10**14) for device in DEVICES}))
def test_never_more_than_there_is_and_the_same_each_time(claims: list[Claim], available: dict[str, int]) -> None:
    try:
        budgets = plan_memory(claims, available)
    except ConfigError:
        assert any(
            sum(claim.times * claim.least_bytes for claim in claims if claim.device == device) > size
            for device, size in available.items()
        )
        return
    assert budgets == plan_memory(claims, available)
    for device, size in available.items():
        mine = [(claim, budget) for claim, budget in zip(claims, budgets, strict=True) if claim.device == device]
        fixed = sum(claim.times * claim.least_bytes for claim, _ in mine)
        taken = sum(count_taken(claim, budget) for claim, budget in mine)
        assert fixed <= taken <= size
        assert taken - fixed <= (size - fixed) * SHARES[device.partition(":")[0]] + 1
    for claim, budget in zip(claims, budgets, strict=True):
        assert (budget is not None) == claim.has_cache
        assert budget is None or budget >= claim.least_bytes
        assert claim.budget_bytes is None or budget == claim.budget_bytes


def count_taken(claim: Claim, budget: int | None) -> int:
    """By all replicas, whose budgets each count the weights that they may share."""
    if budget is None or claim.budget_bytes is not None:
        return claim.times * claim.least_bytes
    return claim.replicas * (budget - claim.weight_bytes) + claim.times * claim.weight_bytes


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / {"meminfo": "proc/meminfo"}.get(name, f"sys/fs/cgroup/memory.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal: 4000 kB\nMemFree: 100 kB\nMemAvailable: 2000 kB\n"


@pytest.mark.parametrize(
    ("files", "kib"),
    [
        ({}, 2000),
        ({"max": "max\n", "current": "4096\n"}, 2000),
        ({"max": f"{1000 * 1024}\n", "current": f"{700 * 1024}\n"}, 300),
        ({"max": f"{9000 * 1024}\n", "current": f"{700 * 1024}\n"}, 2000),
        ({"max": "1024\n", "current": "2048\n"}, 0),
        (
            {
                "max": f"{1000 * 1024}\n",
                "current": f"{700 * 1024}\n",
                "stat": f"anon 5\nfile {600 * 1024}\ninactive_file {400 * 1024}\nactive_file {100 * 1024}\n",
            },
            800,
        ),
    ],
)
def test_what_is_available_of_the_cpu(tmp_path: Path, files: dict[str, str], kib: int) -> None:
    """Of the machine, or of the container; files in the cache do not count as used."""
    assert find_cpu_bytes(write(tmp_path, meminfo=MEMINFO, **files)) == kib * 1024
