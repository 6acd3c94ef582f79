"""Which cores each engine computes on, and which engines take turns on them. Pure.

Engines that own their cores need nothing of one another. Where there are not enough for all, those whose cores overlap
share a lease (`server.engine.core_lease`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """What one engine wants: a core for each of its threads, and its weight beside those it has to share them with."""

    threads: int
    share: float


@dataclass(frozen=True, slots=True)
class Lease:
    """Engines that take turns. `number` among the leases of a server; of this engine its `seat` in `shares`."""

    number: int
    seat: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """`cores`: indices into those the server may use. `lease` None: nobody else computes on them."""

    cores: tuple[int, ...]
    lease: Lease | None


def plan_cores(claims: Sequence[Claim], num_cores: int) -> list[Place]:
    """Each engine, in their order, takes the cores that the fewest before it have taken."""
    taken = [0] * num_cores
    chosen: list[tuple[int, ...]] = []
    for claim in claims:
        least = sorted(range(num_cores), key=lambda core: (taken[core], core))[: claim.threads]
        chosen.append(tuple(sorted(least)))
        for core in least:
            taken[core] += 1
    places = [Place(cores, None) for cores in chosen]
    groups = [group for group in group_overlapping(chosen) if len(group) > 1]
    for number, group in enumerate(groups):
        shares = tuple(claims[index].share for index in group)
        for seat, index in enumerate(group):
            places[index] = Place(chosen[index], Lease(number, seat, shares))
    return places


def group_overlapping(chosen: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices of those that have cores in common, directly or through others."""
    groups: list[list[int]] = []
    for index, cores in enumerate(chosen):
        touched = [group for group in groups if any(set(cores) & set(chosen[other]) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append(sorted([index, *(other for group in touched for other in group)]))
    return sorted(groups)
