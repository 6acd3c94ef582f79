"""What `padless quantize` says about its result: a page of Markdown for people, and the same numbers as JSON."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from runtime.batch import Batch
from runtime.engine import Engine
from runtime.quantization.calibrate import Calibration, LinearReport, Options

FP32_BYTES = 4
AGREEMENTS = {
    "neighbours": "of the ten nearest texts by FP32 are among the ten nearest by INT8",
    "labels": "of the texts get the same label",
}


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one INT8 engine against one of FP32, on the same batches."""

    fp32_tokens_per_s: float
    int8_tokens_per_s: float
    ratio: float
    """Median over the rounds of FP32's time through INT8's."""


def compare_speed(fp32: Engine, int8: Engine, batches: Sequence[Batch], rounds: int = 3) -> Speed:
    """Run all batches on one engine, then on the other, `rounds` times, so that what slows the machine slows both."""
    num_tokens = sum(batch.num_tokens for batch in batches)
    seconds = [(time_batches(fp32, batches), time_batches(int8, batches)) for _ in range(rounds + 1)][1:]
    fp32_s, int8_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(slow / fast for slow, fast in seconds)
    return Speed(num_tokens / fp32_s, num_tokens / int8_s, ratio)


def time_batches(engine: Engine, batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    for batch in batches:
        engine.run(batch)
    return time.perf_counter() - start


def count_bytes(linears: Sequence[LinearReport]) -> tuple[int, int]:
    """Of the linears' weights in FP32, and as they are now: int8 with an fp32 scale per row, or left in float."""
    fp32 = [FP32_BYTES * math.prod(linear.shape) for linear in linears]
    int8 = [math.prod(linear.shape[:-1]) * (linear.shape[-1] + FP32_BYTES) for linear in linears]
    now = [full if linear.is_float else small for linear, full, small in zip(linears, fp32, int8, strict=True)]
    return sum(fp32), sum(now)


def format_json(calibration: Calibration, options: Options, speed: Speed | None) -> str:
    """Every number of the report."""
    quantization = calibration.quantization
    fp32_bytes, int8_bytes = count_bytes(calibration.linears)
    document = {
        "calibration": {"num_texts": quantization.num_texts, "num_tokens": quantization.num_tokens},
        "options": asdict(options),
        "accuracy": asdict(quantization.accuracy),
        "weight_bytes": {"fp32": fp32_bytes, "int8": int8_bytes},
        "speed": None if speed is None else asdict(speed),
        "linears": [asdict(linear) for linear in calibration.linears],
    }
    return json.dumps(document, indent=2) + "\n"


def format_markdown(name: str, calibration: Calibration, options: Options, speed: Speed | None) -> str:
    parts: list[Callable[[], Iterator[str]]] = [
        lambda: describe_texts(name, calibration, options),
        lambda: describe_accuracy(calibration, options),
        lambda: describe_size(calibration, speed),
        lambda: describe_linears(calibration.linears),
    ]
    return "\n\n".join("\n".join(part()) for part in parts) + "\n"


def describe_texts(name: str, calibration: Calibration, options: Options) -> Iterator[str]:
    quantization = calibration.quantization
    yield f"# {name} in INT8"
    yield ""
    yield (
        f"Calibrated on {quantization.num_texts} texts of {quantization.num_tokens} tokens; measured on "
        f"{quantization.accuracy.num_texts} others, with the integer arithmetic simulated in FP32."
    )
    yield f"Activations: 8 bits, {'by the range of each row' if options.activations == 'dynamic' else 'fixed ranges'}."
    kept = "kept small enough for CPUs without VNNI" if options.overflow_free else "of full range"
    yield f"Weights: 8 bits with a scale per output channel, {kept}."


def describe_accuracy(calibration: Calibration, options: Options) -> Iterator[str]:
    accuracy, bound = calibration.quantization.accuracy, options.bound
    yield "## Accuracy against FP32"
    yield ""
    yield "| | measured | wanted |"
    yield "|---|---|---|"
    cosine = f"{bound.cosine_p1:.2f}" if bound.cosine_p1 > 0 else ""
    error = f"at most {bound.error:.0%}" if bound.error < 1 else ""
    yield f"| cosine, 1st percentile | {accuracy.cosine_p1:.4f} | {cosine} |"
    yield f"| cosine, median | {accuracy.cosine_median:.4f} | |"
    yield f"| cosine, least | {accuracy.cosine_min:.4f} | |"
    yield f"| {AGREEMENTS[accuracy.agrees_on]} | {accuracy.agreement:.1%} | {bound.agreement:.0%} |"
    yield f"| error of all values together | {accuracy.error:.2%} | {error} |"
    yield ""
    floats = [f"`{linear.name}`" for linear in calibration.linears if linear.is_float]
    yield f"Left in float: {', '.join(floats)}." if floats else "No layer had to be left in float."
    if not bound.holds(accuracy):
        yield "The held-out texts miss what is wanted, although those calibrated on do not: give more texts."


def describe_size(calibration: Calibration, speed: Speed | None) -> Iterator[str]:
    fp32_bytes, int8_bytes = count_bytes(calibration.linears)
    yield "## Size and speed"
    yield ""
    yield f"Linear weights: {fp32_bytes / 1e6:.1f} MB in FP32, {int8_bytes / 1e6:.1f} MB now."
    if speed is not None:
        yield (
            f"{speed.int8_tokens_per_s:,.0f} tokens/s against {speed.fp32_tokens_per_s:,.0f} in FP32 on the held-out "
            f"texts, run in turn on this machine: {speed.ratio:.2f} times."
        )


def describe_linears(linears: Sequence[LinearReport]) -> Iterator[str]:
    yield "## Each linear by itself"
    yield ""
    yield "Relative error of its output on the inputs that FP32 gives it, with smoothing and without."
    yield ""
    yield "| weight | shape | error | without smoothing | |"
    yield "|---|---|---|---|---|"
    for linear in linears:
        kept = "float" if linear.is_float else ""
        shape = "x".join(str(size) for size in linear.shape)
        errors = ("" if error is None else f"{error:.2%}" for error in (linear.error, linear.unsmoothed_error))
        yield f"| `{linear.name}` | {shape} | {' | '.join(errors)} | {kept} |"
