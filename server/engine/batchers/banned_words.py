"""Words that must not be generated, kept so that a step looks only at those that could come next. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Word = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BannedWords:
    """`single` int64 [num_single]: words of one token, which never may come. `longer`: the others by their last token
    but one, as (all but the last, the last)."""

    single: npt.NDArray[np.int64]
    longer: dict[int, list[tuple[Word, int]]]

    def find_last_tokens(self, token_ids: Sequence[int], drafts: tuple[int, ...] = ()) -> list[int]:
        """The last tokens of those longer words whose others stand at the end of `token_ids` and then `drafts`."""
        candidates = self.longer.get(drafts[-1] if drafts else token_ids[-1], ())
        if not candidates:
            return []
        longest = max(len(start) for start, _ in candidates)
        tail = (*token_ids[-longest:], *drafts)
        return [last for start, last in candidates if tail[-len(start) :] == start]


@lru_cache(maxsize=256)
def index_words(words: tuple[Word, ...]) -> BannedWords:
    """Of words none of which is empty. Remembered: every step of a generation asks for the same ones."""
    longer: dict[int, list[tuple[Word, int]]] = {}
    for word in words:
        if len(word) > 1:
            longer.setdefault(word[-2], []).append((word[:-1], word[-1]))
    return BannedWords(np.array([word[0] for word in words if len(word) == 1], np.int64), longer)
