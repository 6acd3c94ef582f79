"""Loaded workers on the sequences of one task, in turn, and whether they compute the same."""

from dataclasses import dataclass

import numpy as np

from bench.peers.measuring import CellRun, Measurement
from bench.peers.protocol import Rows
from bench.tasks.catalogue import REFERENCE


@dataclass
class TaskMeasurement(Measurement):
    """`model` is the task's; `workload` says how many sequences there are."""

    correlation: float | None = None
    """With REFERENCE's numbers, of all that come out; None if that did not run."""
    peak_bytes: int | None = None
    """Of the process, above what it holds once its weights are there; None where it is not asked for."""


class TaskRun(CellRun):
    kind = TaskMeasurement

    def compare(self) -> None:
        rows = self.collect_rows()
        for name in rows.keys() if REFERENCE in rows else ():
            self.results[name].correlation = correlate(rows[name], rows[REFERENCE])


def correlate(rows: Rows, reference: Rows) -> float:
    """Of the numbers of both, each column less its mean over the rows, and in its own unit (the reference's).

    Raises ValueError where the shapes differ.
    """
    if rows.shape != reference.shape:
        raise ValueError(f"rows of the shape {rows.shape} cannot be compared with {reference.shape}")
    columns = np.stack([rows, reference]).astype(np.float64)
    columns -= columns.mean(axis=1, keepdims=True)
    columns /= np.maximum(columns[1].std(axis=0), 1e-12)
    ours, theirs = columns.reshape(2, -1)
    return float(ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-12))
