"""Cores for every engine: of their own where there are enough, and turns only for those that meet."""

import pytest

from server.processes.core_plan import Claim, Place, plan_cores


def plan(num_cores: int, *threads: int) -> list[Place]:
    return plan_cores([Claim(each, 1.0) for each in threads], num_cores)


def cores_of(places: list[Place]) -> list[tuple[int, ...]]:
    return [place.cores for place in places]


@pytest.mark.parametrize(
    ("num_cores", "threads", "cores"),
    [
        (2, (1, 1), [(0,), (1,)]),
        (4, (2, 1), [(0, 1), (2,)]),
        (8, (4, 2, 2), [(0, 1, 2, 3), (4, 5), (6, 7)]),
        (1, (1,), [(0,)]),
    ],
)
def test_engines_that_all_fit_own_their_cores(
    num_cores: int, threads: tuple[int, ...], cores: list[tuple[int, ...]]
) -> None:
    places = plan(num_cores, *threads)
    assert cores_of(places) == cores
    assert [place.lease for place in places] == [None] * len(threads)


def test_models_over_all_cores_share_one_lease() -> None:
    places = plan_cores([Claim(2, 3.0), Claim(2, 1.0)], 2)
    assert cores_of(places) == [(0, 1), (0, 1)]
    leases = [place.lease for place in places if place.lease is not None]
    assert [(lease.number, lease.seat, lease.shares) for lease in leases] == [(0, 0, (3.0, 1.0)), (0, 1, (3.0, 1.0))]


def test_only_those_that_overlap_take_turns() -> None:
    first, second, third = plan(16, 8, 8, 8)
    assert first.cores == third.cores == tuple(range(8))
    assert second.cores == tuple(range(8, 16))
    assert second.lease is None
    assert first.lease is not None and third.lease is not None
    assert (first.lease.number, first.lease.seat, third.lease.seat) == (0, 0, 1)


def test_who_meets_others_joins_them_all() -> None:
    places = plan(3, 1, 1, 1, 2)
    leases = [place.lease for place in places]
    assert leases[2] is None
    assert [lease.seat for lease in leases if lease is not None] == [0, 1, 2]


def test_two_groups_have_two_leases() -> None:
    leases = [place.lease for place in plan(4, 2, 2, 2, 2)]
    assert [(lease.number, lease.seat) for lease in leases if lease is not None] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_more_threads_than_cores_take_them_all() -> None:
    assert cores_of(plan(2, 8, 1)) == [(0, 1), (0,)]
