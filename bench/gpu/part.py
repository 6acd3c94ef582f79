"""One part of the benchmark: its cases in turn, its table written after each, and an end when its time is spent."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.gpu.target import Target
from bench.report import save_results

Row = list[str]
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""By name: what lies along, and what is plotted over it."""


@dataclass
class Part:
    """Mutable: rows of the table, results by case, and notes on what failed or was left out."""

    name: str
    target: Target
    folder: Path
    seconds: float
    headings: Row = field(default_factory=list)
    note: str = ""
    rows: list[Row] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def file(self) -> str:
        return f"gpu-{self.name}"

    def seconds_left(self) -> float:
        return self.started_s + self.seconds - time.perf_counter()

    def run_cases(self, cases: Mapping[str, Callable[[], Any]]) -> None:
        """Each adds its own rows; what it returns is kept. One that fails leaves a line, and the others run."""
        for name, measure in cases.items():
            if self.seconds_left() <= 0:
                self.report_problem(f"{name}: skipped, the time of this part is spent")
                continue
            try:
                self.results[name] = measure()
            except Exception as error:  # whatever a kernel, a compiler or a driver may raise
                traceback.print_exc()
                self.report_problem(
                    f"{name}: failed, {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                )
            self.save()
        print(f"\n{self.file}\n{self.save()}", flush=True)

    def report_problem(self, text: str) -> None:
        print(text, flush=True)
        self.problems.append(text)

    def save(self) -> str:
        """The table, which is kept as it is so far."""
        note = "\n".join([f"On {self.target.name}. {self.note}".strip(), *self.problems])
        results = {"device": self.target.describe(), "problems": self.problems, "cases": self.results}
        return save_results(self.file, [self.headings, *self.rows], results, note, self.folder)

    def plot(self, series: Series, *, x: str, y: str, title: str) -> None:
        figure = Figure(figsize=(8, 4.5))
        axes = figure.subplots()
        for name, (along, over) in series.items():
            axes.plot(along, over, marker="o" if len(along) < 20 else None, linewidth=1, label=name)
        axes.set(xlabel=x, ylabel=y, title=f"{title}, {self.target.name}")
        axes.set_ylim(bottom=0)
        if series:
            axes.legend(fontsize="small")
        figure.tight_layout()
        figure.savefig(self.folder / f"{self.file}.png", dpi=110)
