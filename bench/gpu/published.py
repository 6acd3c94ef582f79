"""What others have published, in milliseconds on an A100, fp16, 12 layers of 12 heads of 64: not measured by us.

FasterTransformer: docs/bert_guide.md, its tables for A100 beside TensorFlow XLA, with sequences half full on average.
ByteTransformer: its README, sequences 0.6 full on average.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FasterTransformer:
    """`packed`: Effective FasterTransformer, which removes padding; `packed_int8`: that in its INT8 mode 2."""

    xla: float
    padded: float
    packed: float
    packed_int8: float

    def __str__(self) -> str:
        """Of removing padding, and of all of it over XLA, in fp16 and int8."""
        return f"{self.padded / self.packed:.2f}, {self.xla / self.packed:.2f}, {self.xla / self.packed_int8:.2f}"


FASTERTRANSFORMER = {
    (1, 32): FasterTransformer(2.08, 0.90, 0.96, 1.53),
    (1, 128): FasterTransformer(2.21, 1.00, 1.02, 1.57),
    (8, 128): FasterTransformer(3.32, 1.77, 1.43, 1.73),
    (8, 384): FasterTransformer(8.55, 4.39, 2.57, 2.50),
    (32, 128): FasterTransformer(8.38, 4.81, 2.75, 2.48),
    (32, 384): FasterTransformer(27.80, 14.67, 7.71, 5.63),
}
"""By batch and sequence."""


@dataclass(frozen=True)
class ByteTransformer:
    """`fastertransformer`: with padding removed."""

    pytorch: float
    fastertransformer: float
    bytetransformer: float

    def __str__(self) -> str:
        return f"{self.pytorch / self.fastertransformer:.2f}, {self.pytorch / self.bytetransformer:.2f}"


BYTETRANSFORMER = {
    256: ByteTransformer(9.56, 5.49, 6.85),
    384: ByteTransformer(15.01, 7.05, 8.44),
    448: ByteTransformer(19.06, 12.54, 8.89),
    512: ByteTransformer(21.0, 13.79, 9.22),
    1024: ByteTransformer(53.21, 45.22, 24.70),
}
"""By sequence, with a batch of 16."""
