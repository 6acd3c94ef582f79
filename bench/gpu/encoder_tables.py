"""Parts `fastertransformer` and `bytetransformer`: BERT-base over batches that are partly full.

Ours packed, ours fed the same texts padded, and Hugging Face's padded, all to the sequence length of the table, as both
projects did. From tokens on the host to vectors there, in turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from bench.gpu.encoders import MAX_POSITIONS, Shape, build_huggingface, build_padless, pack, spread_lengths
from bench.gpu.part import Part
from bench.gpu.published import BYTETRANSFORMER, FASTERTRANSFORMER
from bench.gpu.target import Target
from bench.timing import Comparison, compare, format_ratio
from runtime.batch import Batch
from runtime.config import Precision
from runtime.engine import Engine
from runtime.limits import BatchLimits

HUGGING_FACE, COMPILED, PADDED = "Hugging Face", "torch.compile", "ours, padded"
LENGTHS = (32, 128, 384)
BATCHES = (32, 8, 1)
COMPILED_SHAPES = ((32, 384), (8, 128))
"""Each is compiled for itself, which takes most of the time."""
ALPHA_LOW = 0.2
"""ByteTransformer's lengths are from 0.2 of the sequence up to all of it: 0.6 on average."""


@dataclass(frozen=True)
class Setting:
    """Batches of one shape: `low`, the shortest text by the longest."""

    num_seqs: int
    length: int
    low: float

    def __str__(self) -> str:
        return f"{self.num_seqs} x {self.length}"

    @property
    def packed(self) -> Batch:
        return pack(spread_lengths(self.num_seqs, self.low * self.length, self.length))

    @property
    def padded(self) -> Batch:
        return pack([self.length] * self.num_seqs)


class Encoders:
    """All engines, each built where it is first asked for."""

    def __init__(self, target: Target, limits: BatchLimits) -> None:
        self.target = target
        self.limits = limits
        self.shape = Shape.of(target)
        self.built: dict[tuple[str, Precision], Engine] = {}

    def ours(self, kind: str, precision: Precision) -> Engine:
        if (kind, precision) not in self.built:
            self.built[kind, precision] = build_padless(self.target, self.shape, kind, precision, self.limits)
        return self.built[kind, precision]

    @cached_property
    def huggingface(self) -> Callable[[Batch, int], None]:
        return build_huggingface(self.target, self.shape)

    @cached_property
    def compiled(self) -> Callable[[Batch, int], None]:
        return build_huggingface(self.target, self.shape, is_compiled=True)


def list_candidates(encoders: Encoders, setting: Setting) -> dict[str, Callable[[], object]]:
    packed, padded = setting.packed, setting.padded
    candidates: dict[str, Callable[[], object]] = {}
    for kind in encoders.target.kinds:
        for precision in encoders.target.precisions:
            candidates[f"{kind} {precision}"] = partial(encoders.ours(kind, precision).run, packed)
    first = encoders.target.precisions[0]
    candidates[PADDED] = partial(encoders.ours(encoders.target.kinds[0], first).run, padded)
    candidates[HUGGING_FACE] = partial(encoders.huggingface, packed, setting.length)
    return candidates


def make_headings(target: Target, others: list[str]) -> list[str]:
    names = [f"{kind} {precision}" for kind in target.kinds for precision in target.precisions]
    first = f"{target.kinds[0]} {target.precisions[0]}"
    shares = [f"{PADDED} by {first} (10-90 %)", *(f"{HUGGING_FACE} by {name}" for name in names)]
    return ["batch x sequence", "tokens", *(f"{name} ms" for name in names), f"{HUGGING_FACE} ms", *shares, *others]


def measure(part: Part, encoders: Encoders, setting: Setting, published: str) -> dict[str, list[float]]:
    comparison = compare(list_candidates(encoders, setting), rounds=part.target.pick(25, 2), title=str(setting))
    names = [name for name in comparison.seconds if name not in (PADDED, HUGGING_FACE)]
    times = [f"{comparison.median_s(name) * 1e3:.2f}" for name in (*names, HUGGING_FACE)]
    ratios = [format_ratio(comparison.ratio(PADDED, names[0]))]
    ratios += [format_ratio(comparison.ratio(HUGGING_FACE, name)) for name in names]
    part.rows.append([str(setting), str(setting.packed.num_tokens), *times, *ratios, published])
    return comparison.seconds


def measure_compiled(part: Part, encoders: Encoders, setting: Setting) -> dict[str, list[float]]:
    """Told in a line: the table has no room for it."""
    kind, precision = encoders.target.kinds[-1], encoders.target.precisions[0]
    candidates: dict[str, Callable[[], object]] = {
        f"{kind} {precision}": partial(encoders.ours(kind, precision).run, setting.packed),
        COMPILED: partial(encoders.compiled, setting.packed, setting.length),
    }
    comparison = compare(candidates, rounds=part.target.pick(25, 2), title=f"{setting}, compiled")
    ratio, taken_ms = (
        format_ratio(comparison.ratio(COMPILED, f"{kind} {precision}")),
        comparison.median_s(COMPILED) * 1e3,
    )
    part.note += f"\n{setting}: {HUGGING_FACE} by torch.compile {taken_ms:.2f} ms, {ratio} times {kind} {precision}."
    return comparison.seconds


def make_encoders(part: Part, settings: list[Setting]) -> Encoders:
    largest = max(setting.num_seqs * setting.length for setting in settings)
    most = max(setting.num_seqs for setting in settings)
    return Encoders(part.target, BatchLimits(largest, most, MAX_POSITIONS))


def compare_fastertransformer(part: Part) -> None:
    """The largest batches first."""
    shapes = [(num_seqs, length) for num_seqs in BATCHES for length in reversed(LENGTHS)]
    settings = [Setting(*shape, 0.0) for shape in part.target.pick(shapes, [(4, 32), (1, 32)])]
    part.headings = make_headings(part.target, ["published on A100"])
    part.note = (
        "BERT-base, texts half full on average.\n"
        "Published on A100: what FasterTransformer gains by removing padding in fp16; then all of it in fp16 and "
        "int8, over TensorFlow XLA."
    )
    encoders = make_encoders(part, settings)
    cases: dict[str, Callable[[], object]] = {}
    for setting in settings:
        published = str(FASTERTRANSFORMER.get((setting.num_seqs, setting.length), "-"))
        cases[str(setting)] = partial(measure, part, encoders, setting, published)
    for shape in part.target.pick(COMPILED_SHAPES, ()):
        setting = Setting(*shape, 0.0)
        cases[f"{setting}, compiled"] = partial(measure_compiled, part, encoders, setting)
    part.run_cases(cases)
    plot_ratios(part, settings)


def compare_bytetransformer(part: Part) -> None:
    num_seqs = part.target.pick(16, 2)
    settings = [Setting(num_seqs, length, ALPHA_LOW) for length in part.target.pick(tuple(BYTETRANSFORMER), (16, 32))]
    part.headings = make_headings(part.target, ["published on A100"])
    part.note = (
        "BERT-base, texts 0.6 full on average.\nPublished on A100 in fp16: FasterTransformer without padding, and "
        "ByteTransformer, over PyTorch."
    )
    encoders = make_encoders(part, settings)
    cases = {
        str(setting): partial(measure, part, encoders, setting, str(BYTETRANSFORMER.get(setting.length, "-")))
        for setting in settings
    }
    part.run_cases(cases)
    plot_ratios(part, settings)


def plot_ratios(part: Part, settings: list[Setting]) -> None:
    """Texts per second over Hugging Face's, by the tokens of a batch."""
    measured = [setting for setting in settings if str(setting) in part.results]
    comparisons = [(setting.packed.num_tokens, Comparison(part.results[str(setting)])) for setting in measured]
    comparisons.sort(key=lambda each: each[0])
    names = comparisons[0][1].seconds if comparisons else {}
    series = {
        name: (
            [num_tokens for num_tokens, _ in comparisons],
            [comparison.ratio(HUGGING_FACE, name)[0] for _, comparison in comparisons],
        )
        for name in names
    }
    part.plot(series, x="tokens of a batch", y=f"times as fast as {HUGGING_FACE} padded", title="BERT-base")
