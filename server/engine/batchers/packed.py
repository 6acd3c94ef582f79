"""Encoders whose engine computes every token once and none besides: whichever inputs fit are packed into a step."""

from collections.abc import Mapping, Sequence

from runtime.batch import ArraySpec
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.encoding import EncoderInput, EncoderStep, EncodingBatcher, Reduce
from server.engine.cost_model import CostModel, StepCost, cost_of_lengths


class PackedBatcher(EncodingBatcher):
    """What a step takes does not depend on which lengths meet in it: so it holds whoever is next, until it is full."""

    def __init__(
        self,
        limits: StepLimits,
        cost_model: CostModel,
        outputs: Sequence[ArraySpec],
        reducers: Mapping[str, Reduce],
    ) -> None:
        super().__init__(limits, outputs, reducers)
        self.cost_model = cost_model

    def choose(self) -> list[EncoderInput]:
        return self.fill(self.make_room())

    def price(self, lengths: Sequence[int]) -> tuple[StepCost, float]:
        cost = cost_of_lengths(lengths)
        return cost, self.cost_model.predict(cost)

    def predict_queue(self) -> float:
        return self.cost_model.predict(StepCost(self.queue.num_tokens, 0))

    def tokens_per_s(self) -> float:
        return self.cost_model.tokens_per_s(self.limits.max_batch_tokens)

    def observe(self, result: StepResult[EncoderStep]) -> None:
        actual_s = result.ended_s - result.started_s
        self.cost_model.observe(result.step.cost, result.step.batch.num_seqs, actual_s)
