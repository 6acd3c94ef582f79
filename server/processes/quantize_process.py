"""`padless quantize`: calibrates a model for INT8 on texts of its user, and says how accurate the result is."""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Never

import torch
from tqdm import tqdm

from models.info import ModelDirectoryError
from models.load import load_model
from runtime.batch import Batch
from runtime.build import build_engine
from runtime.config import UnusableConfig
from runtime.engine import Engine, Progress
from runtime.limits import BatchLimits
from runtime.quantization.accuracy import BOUNDS, AgreesOn
from runtime.quantization.calibrate import Calibration, Options, calibrate
from runtime.quantization.observe import trace_linears
from runtime.quantization.report import Speed, compare_speed, format_json, format_markdown
from runtime.quantization.scheme import save_quantization
from server.config import ConfigError
from server.processes.deployment import DeployedModel, count_cores
from server.processes.resolution import resolve_one
from server.processes.text_batches import make_batches, tokenize

HELD_OUT_SHARE = 0.8
"""Of the texts: choosing needs few, and nearest neighbours are only worth counting among many."""
TIMED_BATCHES = 5


class Arguments(NamedTuple):
    """What `server.__main__` hands over, in its order."""

    config: str
    model: str
    data: str
    out: str
    activations: str
    max_texts: str


def quantize(model: DeployedModel, data: Path, out: Path, options: Options, max_texts: int) -> Calibration:
    """Calibrate, and write `out` and two reports beside it. Raises ConfigError, ModelDirectoryError, UnusableConfig."""
    if model.head.work.decodes:
        raise ConfigError(
            f"--model {model.config.name}: it writes answers, and calibration is for models that give one for a text. "
            "INT8 of generators needs none: set engine.precision to int8"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    texts = choose_texts(list(read_texts(data)), max_texts, data)
    torch.set_num_threads(model.config.engine.threads or count_cores())
    sequences = tokenize(model, texts)
    split = len(sequences) - count_held_out(len(sequences))
    budget = model.config.limits.max_batch_tokens
    calibrated, held_out = (make_batches(part, budget) for part in (sequences[:split], sequences[split:]))
    graph_module = trace_linears(load_model(model.directory, model.info, model.heads), torch.device("cpu"))
    try:
        with Bar() as progress:
            calibration = calibrate(graph_module, calibrated, held_out, options, progress)
            save_quantization(out, calibration.quantization)
            speed = measure_speed(model, out, held_out, progress)
        report = format_markdown(model.config.name, calibration, options, speed)
        out.with_suffix(".md").write_text(report, encoding="utf-8")
        out.with_suffix(".json").write_text(format_json(calibration, options, speed), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None
    return calibration


def count_held_out(num_texts: int) -> int:
    """At least one of two, and never all: there is something to judge by, and something to learn from."""
    return min(max(1, round(HELD_OUT_SHARE * num_texts)), num_texts - 1)


def measure_speed(model: DeployedModel, quantization: Path, held_out: Sequence[Batch], progress: Progress) -> Speed:
    """Of the engines that would serve, in FP32 and with this calibration, on a few batches of all lengths."""
    fp32 = build_like(model, {"precision": "fp32", "quantization": None}, held_out, progress)
    int8 = build_like(model, {"precision": "int8", "quantization": quantization}, held_out, progress)
    progress("timing", 0, 1)
    speed = compare_speed(fp32, int8, held_out[:: -(-len(held_out) // TIMED_BATCHES)])
    progress("timing", 1, 1)
    return speed


def build_like(
    model: DeployedModel, changes: dict[str, object], batches: Sequence[Batch], progress: Progress
) -> Engine:
    """The configured engine but for `changes`, on the CPU and without a cap on its memory."""
    fixed = {"kind": "planned", "device": "cpu", "memory_cap_mb": None, "threads": torch.get_num_threads()}
    config = model.config.engine.model_copy(update=fixed | changes)
    most_seqs = max(batch.num_seqs for batch in batches)
    limits = BatchLimits(model.config.limits.max_batch_tokens, most_seqs, model.max_input_tokens)
    return build_engine(load_model(model.directory, model.info, model.heads), config, limits, progress)


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file of JSON lines: strings, or objects with the key `text`. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at rarer characters
    except OSError as error:
        raise ConfigError(f"--data {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--data {path}: not UTF-8: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"--data {path}: line {number} is not JSON: {error.msg}") from None
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str) or not text:
            raise ConfigError(f"--data {path}: line {number} is neither a text nor an object with a text under 'text'")
        yield text


def choose_texts(texts: Sequence[str], max_texts: int, path: Path) -> list[str]:
    """So many different ones, in an order that is random but the same each time."""
    different = list(dict.fromkeys(texts))
    if len(different) < 2:
        raise ConfigError(f"--data {path}: has {len(different)} different texts; give at least 2, better some hundreds")
    random.Random(0).shuffle(different)
    return different[:max_texts]


class Bar:
    """A progress bar for each kind of work, on standard error where that is a terminal."""

    def __init__(self) -> None:
        self.bar: tqdm[Never] | None = None
        self.what = ""

    def __enter__(self) -> Progress:
        return self.show

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, what: str, done: int, total: int) -> None:
        if self.bar is None or what != self.what:
            self.__exit__()
            self.bar, self.what = tqdm(total=total, desc=what, disable=None), what
        self.bar.n = done
        self.bar.refresh()


def describe(calibration: Calibration, out: Path) -> str:
    """What is printed at the end: the result in two lines, and what to put into the YAML file."""
    accuracy = calibration.quantization.accuracy
    floats = sum(linear.is_float for linear in calibration.linears)
    return (
        f"On {accuracy.num_texts} held-out texts: cosine to FP32 {accuracy.cosine_p1:.4f} at the 1st percentile, "
        f"{accuracy.agreement:.1%} same {accuracy.agrees_on}; {floats} of {len(calibration.linears)} linears left in "
        f"float.\nWritten: {out}, and a report, {out.with_suffix('.md')}. To serve with it:\n\n"
        f"    engine:\n      precision: int8\n      quantization: {out}\n"
    )


def main() -> None:
    arguments, overrides = Arguments(*sys.argv[1:7]), sys.argv[7:]
    try:
        model, out = resolve_one(Path(arguments.config), arguments.model, overrides), Path(arguments.out)
        agrees_on: AgreesOn = "labels" if model.info.id2label else "neighbours"
        options = Options(
            activations="static" if arguments.activations == "static" else "dynamic",
            agrees_on=agrees_on,
            bound=BOUNDS[agrees_on],
        )
        calibration = quantize(model, Path(arguments.data), out, options, int(arguments.max_texts))
        print(describe(calibration, out))
    except (ConfigError, ModelDirectoryError, UnusableConfig) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
