"""The benchmark of CUDA devices without one: what it keeps when a case fails or time runs out, and dry runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.checking import check_all, find_allowed, list_cases, measure_error
from bench.gpu.encoder_tables import Setting
from bench.gpu.encoders import pad, spread_lengths
from bench.gpu.kernels import list_cases as list_kernels
from bench.gpu.part import Part
from bench.gpu.published import FASTERTRANSFORMER
from bench.gpu.target import Target
from runtime.backends.cuda.table import TRITON_KERNELS
from tests.cuda.interpreting import interpreted

DRY = Target(is_dry=True)


def make_part(folder: Path, seconds: float = 60.0) -> Part:
    return Part("check", DRY, folder, seconds, headings=["what", "how many"])


def test_a_case_that_fails_leaves_a_line_and_the_others_run(tmp_path: Path) -> None:
    part = make_part(tmp_path)

    def fail() -> None:
        raise RuntimeError("CUDA error\nmore of it")

    part.run_cases({"first": fail, "second": lambda: part.rows.append(["second", "2"])})
    assert part.problems == ["first: failed, RuntimeError: CUDA error"]
    text = (tmp_path / "gpu-check.txt").read_text()
    assert "second  2" in text and "CUDA error" in text and DRY.name in text
    kept = json.loads((tmp_path / "gpu-check.json").read_text())["results"]
    assert kept["device"] == {"name": DRY.name} and list(kept["cases"]) == ["second"]


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    part = make_part(tmp_path, seconds=0.0)
    part.run_cases({"late": lambda: 1})
    assert not part.results and "late: skipped" in (tmp_path / "gpu-check.txt").read_text()


def test_a_wrong_kernel_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.checking.measure_error", lambda case, target: torch.nan)
    monkeypatch.setattr(Target, "kinds", ())
    part = make_part(tmp_path)
    check_all(part)
    assert len(part.problems) == len(list_cases(torch.float32))


def test_lengths_have_the_mean_that_the_tables_ask_for() -> None:
    assert spread_lengths(1, 0, 128) == [64] and sum(spread_lengths(32, 0, 384)) == 32 * 192
    setting = Setting(16, 512, 0.2)
    assert setting.packed.num_tokens / setting.padded.num_tokens == pytest.approx(0.6, abs=0.01)
    input_ids, mask = pad(setting.packed, 512)
    assert input_ids.shape == (16, 512) and int(mask.sum()) == setting.packed.num_tokens
    assert input_ids[mask.bool()].tolist() == setting.packed.arrays["input_ids"].tolist()


def test_published_figures_are_told_as_ratios() -> None:
    assert str(FASTERTRANSFORMER[32, 384]) == "1.90, 3.61, 4.94"


class Interpreted(Target):
    kernels = TRITON_KERNELS  # type: ignore[assignment]


@pytest.mark.slow
def test_every_kernel_that_is_checked_takes_its_arguments() -> None:
    """And all of them are, in Triton's interpreter; in one type, which takes a minute."""
    dtype = torch.float16
    cases = list_cases(dtype)
    assert {case.op for case in cases.values()} == TRITON_KERNELS.keys()
    with interpreted():
        errors = {name: measure_error(case, Interpreted(is_dry=True)) for name, case in cases.items()}
    wrong = {name: error for name, error in errors.items() if not error <= find_allowed(name, dtype)}
    assert not wrong


@pytest.mark.slow
def test_every_kernel_that_is_timed_runs_in_a_dry_run() -> None:
    for name, make in list_kernels(DRY).items():
        assert make().runs, name


@pytest.mark.slow
def test_dry_run_of_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = ("check", "kernels", "fastertransformer", "bytetransformer", "decode", "memory")
    assert {path.name for path in tmp_path.glob("*.txt")} == {f"gpu-{name}.txt" for name in parts}
    assert {path.stem for path in tmp_path.glob("*.png")} == {f"gpu-{name}" for name in parts[1:]}
