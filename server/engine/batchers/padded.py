"""Encoders whose engine pads each step to its longest sequence: inputs of like lengths share steps.

What the packed batcher would put into one step is a round here, and is computed in several: the dynamic programme
(`partition`) divides it by measured costs. So what that batcher promises of steps holds for rounds: one is shared out
fairly, in order of priority and deadline, and a job no larger than its part is in the next one, whatever waits before
it. Who comes while a round is computed joins it as long as there is room.

Of a round's batches that with the most urgent input runs first, and the rest is divided anew: so nobody waits behind
batches that are cheaper, and each step takes in whoever has come meanwhile and is of its length.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.batch import ArraySpec
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.encoding import EncoderInput, EncoderStep, Encoding, EncodingBatcher, Reduce
from server.engine.batchers.job_queue import Place
from server.engine.batchers.partition import partition
from server.engine.cost_model import StepCost
from server.engine.padded_costs import PaddedCosts
from server.wire.result_stream import ResultStream


class PaddedBatcher(EncodingBatcher):
    """Mutable besides: the inputs of the round that have not been computed, and the room that is left in it.

    `limits.max_batch_tokens` is of a round without padding, and of a step with it.
    """

    def __init__(
        self, limits: StepLimits, costs: PaddedCosts, outputs: Sequence[ArraySpec], reducers: Mapping[str, Reduce]
    ) -> None:
        super().__init__(limits, outputs, reducers)
        self.costs = costs
        self.round: list[EncoderInput] = []
        self.room = self.make_room()

    @property
    def num_queued_tokens(self) -> int:
        return self.queue.num_tokens + sum(item.num_tokens for item in self.round)

    def wait_s(self, now_s: float) -> float | None:
        """As all do; but a round that was begun is gone on with at once."""
        return 0.0 if self.round and not self.computed else super().wait_s(now_s)

    def choose(self) -> list[EncoderInput]:
        if not self.round:
            self.room = self.make_room()
        if not self.room.is_full:
            self.round += self.fill(self.room)
        if not self.round:
            return []
        self.round.sort(key=lambda item: item.num_tokens)
        first = min(range(len(self.round)), key=lambda place: find_urgency(self.round[place]))
        batch = next(places for places in self.divide() if first in places)
        chosen = self.round[batch.start : batch.stop]
        del self.round[batch.start : batch.stop]
        return chosen

    def divide(self) -> list[range]:
        """The round, which is sorted, into batches of least cost."""
        return partition(
            np.array([item.num_tokens for item in self.round]),
            self.costs.read,
            max_batch_requests=self.limits.max_batch_requests,
            max_batch_tokens=self.max_step_tokens,
        )

    def list_late(self, now_s: float) -> list[ResultStream]:
        late = {item.encoding.stream: None for item in self.round if item.encoding.waiting.deadline_s <= now_s}
        return list(late | dict.fromkeys(super().list_late(now_s)))

    def forget(self, stream: ResultStream) -> Encoding | None:
        encoding = super().forget(stream)
        self.round = [item for item in self.round if item.encoding is not encoding]
        return encoding

    def price(self, lengths: Sequence[int]) -> tuple[StepCost, float]:
        """Of what is computed, padding included."""
        num_seqs, longest = len(lengths), lengths[-1]
        cost = StepCost(num_seqs * longest, num_seqs * longest**2)
        return cost, self.costs.predict(num_seqs, longest)

    def predict_queue(self) -> float:
        rate = self.tokens_per_s()
        return self.queue.num_tokens / rate if rate > 0 else 0.0

    def tokens_per_s(self) -> float:
        return self.costs.tokens_per_s(self.limits.max_batch_tokens, self.limits.max_batch_requests)

    def observe(self, result: StepResult[EncoderStep]) -> None:
        batch = result.step.batch
        self.costs.observe(batch.num_seqs, batch.max_seqlen, batch.num_tokens, result.ended_s - result.started_s)

    def check_books(self) -> None:
        super().check_books()
        assert self.encodings or not self.round, "Inputs of a round wait for nobody."


def find_urgency(item: EncoderInput) -> tuple[Place, int]:
    """As the queue orders jobs; of one job, its first input first."""
    return item.encoding.waiting.place, item.index
