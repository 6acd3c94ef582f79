"""Token ids that clients send in place of texts: taken as they are, and cut as texts are."""

from typing import NamedTuple

import numpy as np

from server.errors import InvalidField
from server.text.work import Work, choose_part
from server.wire.job import TokenSequence


class IdRange(NamedTuple):
    """What a model has: ids, and types, from 0 up to these."""

    vocab_size: int
    type_vocab_size: int

    def take_ids(self, ids: list[int], work: Work) -> TokenSequence:
        """The client has added the special tokens, if it wants any. Raises InvalidField and its kinds."""
        ids = ids[choose_part(len(ids), work)]
        self.check(min(ids), max(ids))
        return TokenSequence(np.array(ids, dtype=np.int32))

    def take_sequence(self, sequence: TokenSequence, work: Work) -> TokenSequence:
        """The same with types."""
        part = choose_part(sequence.num_tokens, work)
        ids, types = sequence.input_ids[part], sequence.token_type_ids
        self.check(int(ids.min()), int(ids.max()))
        if types is not None and (types.min() < 0 or types.max() >= self.type_vocab_size):
            raise InvalidField(f"has token types outside 0 to {self.type_vocab_size - 1}, which this model has")
        own_types = types[part].astype(np.int32) if types is not None and types.any() else None
        return TokenSequence(ids.astype(np.int32), own_types)

    def check(self, low: int, high: int) -> None:
        """Ids from `low` to `high`. Raises InvalidField."""
        if low < 0 or high >= self.vocab_size:
            foreign = low if low < 0 else high
            raise InvalidField(f"has the token id {foreign}; ids of this model go from 0 to {self.vocab_size - 1}")
