"""XLM-RoBERTa XL in every precision; that its rows are those of transformers is in test_parity."""

from pathlib import Path

import torch
from test_parity import compute_rows
from tiny_engines import PRECISIONS, capture_model, check_planned
from tiny_models import make_model, make_sequences, pack

SEQLENS = [1, 2, 15, 16, 17, 33, 1, 48, 64, 3, 73]


def test_planned(tmp_path: Path) -> None:
    captured = capture_model(lambda: make_model("xlm-roberta-xl", tmp_path))
    ids, types = make_sequences(captured.model, SEQLENS)
    rows = compute_rows(captured.model, pack(ids, types))
    expected = torch.stack([part.mean(0) for part in rows.split(SEQLENS)])
    for precision in PRECISIONS:
        check_planned(captured, precision, ids, types, expected)
