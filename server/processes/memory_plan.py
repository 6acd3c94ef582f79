"""How the memory of each device is divided among the engines on it. Pure.

Configured budgets and weights come first, and have to fit. Of what they leave, all engines that have a cache and no
budget of their own get equal parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.config import ConfigError

SHARES = {"cpu": 0.5, "cuda": 0.9}
"""By the kind of a device: of what budgets and weights leave, the part that is given out. The rest is for encoders'
activations, for the processes themselves and for whoever else computes there."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the engines of one model want of one device."""

    model: str
    device: str
    """`cpu`, or `cuda:0` and so on."""
    replicas: int
    """On this device."""
    weight_bytes: int
    """Of one replica."""
    shares_weights: bool = False
    """Whether all replicas map the same."""
    has_cache: bool = False
    budget_bytes: int | None = None
    """What one replica is configured to take: weights, activations and cache together."""

    @property
    def least_bytes(self) -> int:
        """Of one replica, before anything is divided."""
        return self.weight_bytes if self.budget_bytes is None else self.budget_bytes

    @property
    def times(self) -> int:
        """How often `least_bytes` is needed."""
        return 1 if self.shares_weights and self.budget_bytes is None else self.replicas

    @property
    def is_open(self) -> bool:
        return self.has_cache and self.budget_bytes is None


def plan_memory(claims: Sequence[Claim], available_bytes: Mapping[str, int]) -> list[int | None]:
    """The budget of one replica of each claim, as `Claim.budget_bytes`; None for engines without a cache.

    `available_bytes`: of each device that is claimed. Raises ConfigError where it is less than what is needed.
    """
    parts = {
        device: find_part(device, [claim for claim in claims if claim.device == device], available)
        for device, available in available_bytes.items()
    }
    return [claim.weight_bytes + parts[claim.device] if claim.is_open else claim.budget_bytes for claim in claims]


def find_part(device: str, claims: Sequence[Claim], available_bytes: int) -> int:
    """What each engine without a budget gets beside its weights. Raises ConfigError."""
    spare_bytes = available_bytes - sum(claim.times * claim.least_bytes for claim in claims)
    if spare_bytes < 0:
        raise ConfigError(explain(device, claims, available_bytes))
    num_open = sum(claim.replicas for claim in claims if claim.is_open)
    kind, _, _ = device.partition(":")
    return int(spare_bytes * SHARES[kind]) // max(num_open, 1)


def explain(device: str, claims: Sequence[Claim], available_bytes: int) -> str:
    """Who needs what, and what can be changed."""
    needs = [
        f"{claim.model} {claim.times} x {claim.least_bytes / 2**20:.1f} MB "
        f"({'weights' if claim.budget_bytes is None else 'engine.kv_cache.budget_mb'})"
        for claim in claims
    ]
    needed_bytes = sum(claim.times * claim.least_bytes for claim in claims)
    budgeted = [claim.model for claim in claims if claim.budget_bytes is not None]
    budgets = f"engine.kv_cache.budget_mb of {', '.join(budgeted)} or " if budgeted else ""
    return (
        f"engine.device {device} has {available_bytes / 2**20:.1f} MB of memory available, and its models need "
        f"{needed_bytes / 2**20:.1f} MB: {', '.join(needs)}. Lower {budgets}engine.replicas, or serve fewer models "
        "there"
    )
