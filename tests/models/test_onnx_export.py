"""`padless export`: files for use elsewhere take padded inputs, and give what the model gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_models import make_model, make_sequences, pack, run_module
from transformers import AutoModel, AutoModelForTokenClassification

from models.load import load_model
from runtime.backends.onnx import export
from runtime.backends.onnx.backend import portable_backend
from runtime.backends.onnx.session import Session
from runtime.build import fuse
from runtime.config import EngineConfig, UnusableConfig
from server.__main__ import main
from server.processes import export_process
from tests.tolerances import check_close

CONFIG = EngineConfig(kind="onnxruntime")
SEQLENS = [5, 1, 17, 8]


def save(
    name: str, directory: Path, out: Path, auto: Any = AutoModel
) -> tuple[Session, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The file as a session, its inputs for some sequences, and what the model gives for these."""
    model = make_model(name, directory, auto)
    export.save_padded(fuse(load_model(model.directory, model.info, model.heads), CONFIG, portable_backend()), out)
    ids, types = make_sequences(model, SEQLENS)
    padded = {name: np.zeros((len(ids), max(SEQLENS)), np.int64) for name in ("input_ids", "token_type_ids")}
    mask = np.zeros((len(ids), max(SEQLENS)), np.int64)
    for row, (sequence, kinds) in enumerate(zip(ids, types, strict=True)):
        # Wherever the mask is, padding on the left too.
        where = slice(max(SEQLENS) - len(sequence), None) if row % 2 else slice(0, len(sequence))
        padded["input_ids"][row, where], padded["token_type_ids"][row, where] = sequence, kinds
        mask[row, where] = 1
    session = Session(out, {}, CONFIG)
    given = padded | {"attention_mask": mask}
    expected = {each: tensor.numpy() for each, tensor in run_module(model, pack(ids, types)).items()}
    return session, {each: given[each] for each in session.inputs}, expected


@pytest.mark.parametrize("name", ["bert", "modernbert", pytest.param("deberta-v2-conv", marks=pytest.mark.slow)])
def test_what_it_gives(name: str, tmp_path: Path) -> None:
    session, given, expected = save(name, tmp_path / "model", tmp_path / "model.onnx")
    check_close(session.compute(given, list(session.outputs))["embeddings"], expected["embeddings"])


def test_rows_of_tokens_stand_where_their_tokens_do(tmp_path: Path) -> None:
    session, given, expected = save(
        "bert", tmp_path / "model", tmp_path / "model.onnx", AutoModelForTokenClassification
    )
    found, mask = session.compute(given, list(session.outputs))["token_logits"], given["attention_mask"]
    assert found.shape[:2] == mask.shape and not found[mask == 0].any()
    check_close(found[mask == 1], expected["token_logits"])


def test_large_weights_lie_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_INLINE_BYTES", 0)
    session, given, expected = save("bert", tmp_path / "model", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").exists()
    check_close(session.compute(given, list(session.outputs))["embeddings"], expected["embeddings"])
    assert onnx.load(str(tmp_path / "model.onnx")).producer_name == "padless"


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["export_process", *words])
    export_process.main()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_model("bert", tmp_path / "model")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"models": [{"name": "m", "source": {"path": str(tmp_path / "model")}}]}))
    out = tmp_path / "out.onnx"
    run_command([str(config), "m", str(out), "models.0.pooling=cls"], monkeypatch)
    assert "input_ids, attention_mask, token_type_ids -> embeddings [2, 32]" in capsys.readouterr().out
    monkeypatch.setattr(export, "MOST_INLINE_BYTES", 0)
    run_command([str(config), "m", str(out)], monkeypatch)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["config.json", "model", "out.onnx", "out.onnx.data"], "nothing unfinished is left"
    assert "embeddings" in Session(out, {}, CONFIG).outputs
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command([str(config), "n", str(out)], monkeypatch)
    assert ended.value.code == 2 and "--model n: no such model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="No such file or directory"):
        run_command([str(config), "m", str(tmp_path / "nowhere" / "out.onnx")], monkeypatch)
    monkeypatch.setattr("sys.argv", ["padless", "export", "--config", str(config)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "--out" in capsys.readouterr().err


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UnusableConfig, match="no ONNX file: copy or export it again"):
        Session(tmp_path / "model.onnx", {}, CONFIG)
