"""How an answer is held to a grammar. Who understands grammars is none of the engine's business: see `text.grammar`."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.errors import Unservable


class Matcher(Protocol):
    """How far an answer has followed its grammar."""

    def compute_mask(self) -> npt.NDArray[np.uint32]:
        """The tokens that may come next, as in `TokenMasks`."""

    def accept(self, token_id: int) -> None: ...

    def fork(self) -> "Matcher": ...


MakeMatcher = Callable[[str, str], Matcher]
"""(kind, text) of `GenerationParams.grammar` to what follows an answer through it. Raises Unservable."""


def refuse_grammar(kind: str, text: str) -> Matcher:
    raise Unservable(
        f"this model has no tokenizer, so {kind.replace('_', ' ')} cannot be followed; leave it out", "grammar"
    )
