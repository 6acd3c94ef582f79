"""What a generated answer must keep to be a good one. Pure; which requests are looked at is left to `measure`."""

import re
from typing import NamedTuple, Self

MIN_GOOD_SHARE = 0.9
"""Of the requests of a step, for its rate to count as one the server can take."""

UNITS_MS = {"ms": 1.0, "s": 1000.0}
NAMES = ("ttft", "itl")


class TokenSlo(NamedTuple):
    """Limits for the time to first token of a request and for the mean of its inter-token latencies."""

    ttft_ms: float = 500.0
    itl_ms: float = 100.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `ttft=500ms,itl=100ms`. Raises ValueError."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            found = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)", part.strip())
            if found is None or found[1] not in NAMES or float(found[2]) == 0:
                raise ValueError(f"{part!r} is not a limit such as ttft=500ms or itl=0.1s")
            limits[found[1]] = float(found[2]) * UNITS_MS[found[3]]
        if limits.keys() != set(NAMES):
            raise ValueError(f"{text!r} needs both limits, as in ttft=500ms,itl=100ms")
        return cls(limits["ttft"], limits["itl"])

    def allows(self, ttft_ms: float, itl_ms: float) -> bool:
        return ttft_ms <= self.ttft_ms and itl_ms <= self.itl_ms

    def allowed_total_ms(self, num_tokens: float) -> float:
        """The longest an answer of so many tokens may take in all."""
        return self.ttft_ms + max(0.0, num_tokens - 1) * self.itl_ms

    def __str__(self) -> str:
        return f"ttft={self.ttft_ms:g}ms,itl={self.itl_ms:g}ms"
