"""`python -m bench.packing`: what packing alone gains. The same engine, fed the same sequences packed and padded.

The plot shows the speed-up against the ratio of tokens: on the line, every token saved is time saved.
"""

import numpy as np
import torch
from matplotlib.figure import Figure

from bench.minilm import build_ours
from bench.report import RESULTS, write_results
from bench.timing import compare, format_ratio
from bench.traffic import pack_sorted, pad_all, sample_lengths, sample_sequences

KINDS = ("constant-32", "constant-128", "constant-256", "uniform", "lognormal", "long-tail")
NUM_SEQS = 48
ROUNDS = 9


def measure(threads: int) -> list[dict[str, object]]:
    engine = build_ours(threads=threads)
    rng = np.random.default_rng(1)
    rows = []
    for kind in KINDS:
        lengths = sample_lengths(kind, NUM_SEQS, rng)
        if kind == "long-tail":
            lengths[0] = 256  # the tail is the point: one in a batch of 48
        sequences = sample_sequences(lengths, rng)
        packed, padded = pack_sorted(sequences), pack_sorted(pad_all(sequences))
        candidates = {
            "packed": lambda batch=packed: engine.run(batch),
            "padded": lambda batch=padded: engine.run(batch),
        }
        comparison = compare(candidates, rounds=ROUNDS, title=kind)
        rows.append(
            {
                "lengths": kind,
                "packed_tokens": packed.num_tokens,
                "token_ratio": padded.num_tokens / packed.num_tokens,
                "speed_up": comparison.ratio("padded", "packed"),
                "seconds": comparison.seconds,
            }
        )
    return rows


def plot(rows: list[dict[str, object]]) -> None:
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    limit = max(row["token_ratio"] for row in rows) * 1.1
    axes.plot([1, limit], [1, limit], color="grey", linewidth=1, label="every token saved is time saved")
    for row in rows:
        median, low, high = row["speed_up"]
        error = [[median - low], [high - median]]
        axes.errorbar(row["token_ratio"], median, yerr=error, fmt="o", capsize=3, label=row["lengths"])
    axes.set(xlabel="tokens padded / tokens packed", ylabel="time padded / time packed", title="What packing gains")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "packing.png", dpi=110)


def main() -> None:
    rows = measure(torch.get_num_threads())
    table = [["lengths", "tokens packed", "tokens padded/packed", "time padded/packed (10-90 %)"]]
    for row in rows:
        ratios = [f"{row['token_ratio']:.2f}", format_ratio(row["speed_up"])]
        table.append([row["lengths"], str(row["packed_tokens"]), *ratios])
    write_results("packing", table, rows)
    plot(rows)


if __name__ == "__main__":
    main()
