"""How large steps may be, learnt from those for which the device had no memory. Pure."""

import logging

from runtime.engine import OutOfMemory

logger = logging.getLogger("padless.engine")


class TokenCap:
    """Mutable: `num_tokens`, the most of a step. Memory that others have taken may come back, but nobody says when: it
    stays as low as it once was until the process ends."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def learn(self, num_tokens: int, error: Exception) -> None:
        """A step of so many tokens has failed. Steps are halved until they fit, and from then on are no larger."""
        half = num_tokens // 2
        if isinstance(error, OutOfMemory) and 0 < half < self.num_tokens:
            self.num_tokens = half
            logger.warning("no memory for a step of %d tokens; steps have %d at most now", num_tokens, half)
