"""The largest batch that may ever come: what an engine is planned for."""

from dataclasses import dataclass

from runtime.memory.lifetimes import BatchShape


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batch the scheduler may form."""

    max_batch_tokens: int
    max_batch_requests: int
    max_input_tokens: int
    max_batch_logits: int = 0
    """Decoders: the most tokens of a step after which a next one is wanted. Of encoders as many tokens as there may be
    sequences may be guessed."""
    max_source_tokens: int = 0
    """Encoder-decoders: of a source; `max_input_tokens` is of what is decoded."""

    def of_sources(self) -> "BatchLimits":
        """Of the batches that the encoder of an encoder-decoder is given."""
        return BatchLimits(self.max_batch_tokens, self.max_batch_requests, self.max_source_tokens)

    def largest(self) -> BatchShape:
        num_seqs = min(self.max_batch_requests, self.max_batch_tokens)
        longest = min(self.max_input_tokens, self.max_batch_tokens)
        return BatchShape(self.max_batch_tokens, num_seqs, longest, self.max_batch_logits or num_seqs)

    @property
    def least_tokens(self) -> int:
        """A step must have room for these: the longest input, or one token of every answer."""
        return min(self.max_batch_logits, self.max_batch_tokens) or self.max_input_tokens
