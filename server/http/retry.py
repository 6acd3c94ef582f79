"""What headers tell a client that should come back, or had better not."""

import math

from server.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    MethodNotAllowed,
    Overloaded,
    ServiceError,
    Unauthenticated,
)

UNAVAILABLE_RETRY_S = 1.0
"""Engines come back in seconds or, behind a load balancer, another server answers at once."""
MAX_RETRY_S = 60.0
"""Clients treat a longer wait as "do not retry" (openai-python gives up above 120 s)."""


def describe_retry(error: ServiceError) -> dict[str, str]:
    if isinstance(error, Overloaded):
        return bound_retry(error.retry_after_s)
    if isinstance(error, EngineUnavailable):
        return bound_retry(UNAVAILABLE_RETRY_S)
    if isinstance(error, DeadlineExceeded):
        # Clients retry a 504 by themselves; a missed deadline retried is load that nobody waits for.
        return {"x-should-retry": "false"}
    if isinstance(error, MethodNotAllowed):
        return {"allow": error.allow}
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    return {}


def bound_retry(retry_after_s: float) -> dict[str, str]:
    """The standard header has whole seconds; `retry-after-ms` is what openai-python looks at first."""
    bounded_s = min(max(retry_after_s, 0.001), MAX_RETRY_S)
    return {"retry-after": str(math.ceil(bounded_s)), "retry-after-ms": str(math.ceil(bounded_s * 1000))}
