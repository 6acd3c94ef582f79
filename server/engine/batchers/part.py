"""What a step computes of one sequence, and what that costs. Pure."""

from dataclasses import dataclass

from server.engine.batchers.sequences import Generation, Sequence
from server.engine.cost_model import StepCost


@dataclass(frozen=True, slots=True)
class Part:
    """What a step computes of one sequence, behind its `num_past_tokens`. `num_tokens`: drafts included.
    `num_prompt_rows`: logprobs of the prompt that it gives. `encodes`: its generation's source comes first."""

    generation: Generation
    sequence: Sequence
    num_past_tokens: int
    num_tokens: int
    drafts: tuple[int, ...] = ()
    num_prompt_rows: int = 0
    encodes: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the newest token is among what is computed, so that a next one can be chosen. Asked before a step."""
        return self.is_complete_at(self.num_past_tokens + self.num_tokens - len(self.drafts))

    def is_complete_at(self, num_computed_tokens: int) -> bool:
        return num_computed_tokens == len(self.sequence.token_ids) and not self.generation.branches

    @property
    def weight_places(self) -> range:
        """Those of its tokens, counted from the first, whose weights of cross-attention are wanted. Asked before a
        step."""
        params = self.generation.params
        if params.coverage_penalty and self.is_complete:
            return range(self.num_tokens - 1, self.num_tokens)
        if params.align_from is None:
            return range(0)
        return range(max(0, params.align_from - self.num_past_tokens), self.num_tokens)

    def has_grown_again(self, num_computed_tokens: int) -> bool:
        """Whether the prompt of answers that had lost their blocks is there again."""
        return num_computed_tokens == len(self.sequence.token_ids) and bool(self.generation.branches)


def count_phases(parts: list[Part], cost: StepCost) -> tuple[int, int]:
    """Tokens of prompts and sources, and of answers, in a step that costs this."""
    is_answer = [part.num_past_tokens >= part.generation.num_prompt_tokens for part in parts]
    num_decoded = sum(part.num_tokens for part, decodes in zip(parts, is_answer, strict=True) if decodes)
    return cost.num_tokens - num_decoded, num_decoded


def cost_of_parts(parts: list[Part]) -> StepCost:
    """Attention costs by the pairs of new tokens and all tokens that they see."""
    num_tokens = sum(part.num_tokens for part in parts)
    pairs = sum(part.num_tokens * (part.num_past_tokens + part.num_tokens) for part in parts)
    for part in parts:
        if part.generation.source is not None:
            seqlen = part.generation.source.num_tokens
            num_tokens += seqlen if part.encodes else 0
            pairs += seqlen * (part.num_tokens + (seqlen if part.encodes else 0))
    return StepCost(num_tokens, pairs)
