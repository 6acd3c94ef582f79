"""`python -m bench.padded_batching`: what the dynamic programme gains where an engine pads.

The server's own batcher, once as it is and else with another rule for what shares a step: FIFO takes inputs as they
came, 32 at most; sort-and-chunk sorts a round by length and cuts it every 32 inputs, as sentence-transformers does, or
every 8. All with the same budget, the same arrivals, and an engine that takes exactly what the table of costs says.
Time is virtual: nothing is measured, so the numbers are the same on every machine.

The plot shows latency against load, which is a part of what the dynamic programme makes of full rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from bench.report import RESULTS, write_results
from bench.traffic import sample_lengths
from runtime.batch import ArraySpec, Output
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.encoding import EncoderInput
from server.engine.batchers.padded import PaddedBatcher
from server.engine.batchers.partition import partition
from server.engine.padded_calibration import list_lines
from server.engine.padded_costs import CostTable, PaddedCosts
from server.wire.job import Job, Result, TokenSequence, write_inputs
from server.wire.result_stream import ResultStream

LIMITS = StepLimits(max_batch_tokens=4096, max_batch_requests=512, max_wait_s=0.0)
"""The defaults of the configuration."""
CHUNK = 32
NUM_INPUTS = 4000
NUM_ROUNDS = 50
"""Full rounds, of which the load that the table allows is found."""
LOADS = (0.5, 0.8, 0.95)
MEAN_BURST = 16
TIMEOUT_S = 1e6

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def make_costs() -> PaddedCosts:
    """A BERT of 6 layers of 384 at 200 GFLOP/s: its 10.6 million weights are read in 2 ms; a token takes 21 MFLOP, and
    for each token of its row, padding included, 9.2 kFLOP of attention."""
    num_seqs, seqlens = (np.array(list_lines(LIMITS.max_batch_requests)) for _ in range(2))
    seconds = 2e-3 + np.outer(num_seqs, 1.06e-4 * seqlens + 4.6e-8 * seqlens**2)
    return PaddedCosts(CostTable(num_seqs, seqlens, seconds), is_measured=True)


class ChunksOf32(PaddedBatcher):
    """A round sorted and cut every so many inputs, or before if the budget is full."""

    chunk = CHUNK

    def divide(self) -> list[range]:
        batches, begin = [], 0
        for place, item in enumerate(self.round):
            if place - begin == self.chunk or (place + 1 - begin) * item.num_tokens > self.limits.max_batch_tokens:
                batches.append(range(begin, place))
                begin = place
        return [*batches, range(begin, len(self.round))]


class ChunksOf8(ChunksOf32):
    chunk = 8


class Fifo(PaddedBatcher):
    """Whoever waits longest, and as many behind as fit the budget with their padding."""

    def choose(self) -> list[EncoderInput]:
        chosen: list[EncoderInput] = []
        longest = 0
        for waiting in list(self.queue.order):
            for index, item in list(waiting.items.items()):
                longest = max(longest, item.num_tokens)
                if len(chosen) == CHUNK or (len(chosen) + 1) * longest > self.limits.max_batch_tokens:
                    return chosen
                chosen.append(self.queue.take(waiting, index))
        return chosen


POLICIES = {
    "FIFO": Fifo,
    "sorted, by 32": ChunksOf32,
    "sorted, by 8": ChunksOf8,
    "dynamic programme": PaddedBatcher,
}


@dataclass
class Simulation:
    """Mutable: what was computed, and how long each input took from its arrival."""

    batcher: PaddedBatcher
    busy_s: float = 0.0
    num_steps: int = 0
    num_computed_tokens: int = 0

    def run(self, arrivals_s: FloatArray, lengths: IntArray) -> FloatArray:
        """Seconds from arrival to answer. The engine starts the next step as soon as one ends, if anybody waits."""
        latencies_s = np.zeros(len(lengths))
        now_s, num_added = 0.0, 0
        told: list[int] = []
        while num_added < len(lengths) or self.batcher.num_queued_tokens:
            while num_added < len(lengths) and arrivals_s[num_added] <= now_s:
                self.add(int(lengths[num_added]), float(arrivals_s[num_added]), told, num_added)
                num_added += 1
            ended_s = self.step(now_s)
            now_s = float(arrivals_s[num_added]) if ended_s is None else ended_s
            latencies_s[told] = now_s - arrivals_s[told]
            told.clear()
        return latencies_s

    def add(self, length: int, arrival_s: float, told: list[int], number: int) -> None:
        stream = ResultStream(lambda rows: None)
        stream.listen(lambda result: note(result, told, number), fail)
        job = Job("encode", write_inputs([TokenSequence(np.zeros(length, np.int32))]), TIMEOUT_S)
        self.batcher.add(job, stream, arrival_s)

    def step(self, now_s: float) -> float | None:
        """When it ends; None where nobody waits."""
        step = self.batcher.form(now_s)
        if step is None:
            return None
        self.busy_s += step.predicted_s
        self.num_steps += 1
        self.num_computed_tokens += step.cost.num_tokens
        ended_s = now_s + step.predicted_s
        output = Output({"embeddings": np.zeros((step.batch.num_seqs, 1), np.float32)})
        self.batcher.settle(StepResult(step, now_s, ended_s, output, None), ended_s)
        self.batcher.deliver()
        return ended_s


def note(result: Result, told: list[int], number: int) -> None:
    assert result.is_last
    told.append(number)


def fail(error: Exception) -> None:
    raise error


def find_capacity(costs: PaddedCosts, rng: np.random.Generator) -> float:
    """Inputs per second where every round is full and divided by the dynamic programme."""
    num_inputs, seconds = 0, 0.0
    for _ in range(NUM_ROUNDS):
        lengths = sample_lengths("lognormal", LIMITS.max_batch_requests, rng)
        lengths = np.sort(lengths[np.cumsum(lengths) <= LIMITS.max_batch_tokens])
        batches = partition(
            lengths,
            costs.read,
            max_batch_requests=LIMITS.max_batch_requests,
            max_batch_tokens=LIMITS.max_batch_tokens,
        )
        num_inputs += len(lengths)
        seconds += sum(costs.predict(len(batch), int(lengths[batch[-1]])) for batch in batches)
    return num_inputs / seconds


def sample_poisson(rate: float, rng: np.random.Generator) -> FloatArray:
    return np.cumsum(rng.exponential(1 / rate, NUM_INPUTS))


def sample_bursts(rate: float, rng: np.random.Generator) -> FloatArray:
    """Bursts come at random, of geometrically distributed size; all of one come at once."""
    sizes = rng.geometric(1 / MEAN_BURST, NUM_INPUTS)
    times = np.cumsum(rng.exponential(MEAN_BURST / rate, NUM_INPUTS))
    return np.repeat(times, sizes)[:NUM_INPUTS]


ARRIVALS: dict[str, Callable[[float, np.random.Generator], FloatArray]] = {
    "Poisson": sample_poisson,
    "bursts": sample_bursts,
}


def measure() -> list[dict[str, object]]:
    capacity = find_capacity(make_costs(), np.random.default_rng(0))
    rows = []
    for kind, sample in ARRIVALS.items():
        for load in LOADS:
            rng = np.random.default_rng(1)
            arrivals_s, lengths = sample(load * capacity, rng), sample_lengths("lognormal", NUM_INPUTS, rng)
            for name, policy in POLICIES.items():
                outputs = [ArraySpec("embeddings", "float32", ("num_seqs", 1))]
                reducers = {"encode": lambda arrays, job, indices: arrays}
                simulation = Simulation(policy(LIMITS, make_costs(), outputs, reducers))
                p50_s, p99_s = np.percentile(simulation.run(arrivals_s, lengths), [50, 99])
                rows.append(
                    {
                        "arrivals": kind,
                        "load": load,
                        "policy": name,
                        "inputs_per_s": load * capacity,
                        "busy_s": simulation.busy_s,
                        "num_steps": simulation.num_steps,
                        "padding": 1 - float(lengths.sum()) / simulation.num_computed_tokens,
                        "p50_s": float(p50_s),
                        "p99_s": float(p99_s),
                    }
                )
    return rows


def plot(rows: list[dict[str, object]]) -> None:
    figure = Figure(figsize=(10, 4.5))
    panels = figure.subplots(1, len(ARRIVALS), sharey=True)
    for axes, kind in zip(panels, ARRIVALS, strict=True):
        for number, name in enumerate(POLICIES):
            found = [row for row in rows if (row["arrivals"], row["policy"]) == (kind, name)]
            for key, style, marker in (("p50_s", "--", "o"), ("p99_s", "-", "s")):
                seconds = [1e3 * row[key] for row in found]
                label = f"{name}, {key[:3]}"
                axes.plot(
                    [100 * load for load in LOADS], seconds, style, marker=marker, color=f"C{number}", label=label
                )
        axes.set(xlabel="load, % of what full rounds allow", title=kind, yscale="log")
    panels[0].set(ylabel="latency, ms")
    panels[1].legend(fontsize=7, ncols=2, loc="lower right")
    figure.tight_layout()
    figure.savefig(RESULTS / "padded-batching.png", dpi=110)


def main() -> None:
    rows = measure()
    table = [["arrivals", "load", "policy", "engine s", "steps", "padding", "p50 ms", "p99 ms"]]
    for row in rows:
        numbers = [f"{row['busy_s']:.2f}", str(row["num_steps"]), f"{row['padding']:.1%}"]
        latencies = [f"{1e3 * row[key]:.1f}" for key in ("p50_s", "p99_s")]
        table.append([row["arrivals"], f"{row['load']:.0%}", row["policy"], *numbers, *latencies])
    note = (
        f"{NUM_INPUTS:,} inputs in virtual time: the machine and the date do not matter. Whoever cannot keep up has\n"
        "latencies that grow as long as inputs come."
    )
    write_results("padded-batching", table, rows, note)
    plot(rows)


if __name__ == "__main__":
    main()
