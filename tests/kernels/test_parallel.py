"""A region runs each task once, whoever takes it, and is over when all are done."""

import subprocess
from pathlib import Path

import pytest

from runtime.backends.cpu.build import SOURCES, NoCompiler, find_compiler

SANITIZED = ("-O1", "-g", "-fsanitize=thread")
SLEEPY = "-DPADLESS_SPIN_TURNS=1"
"""Threads that wait fall asleep at once, which on a quiet machine they otherwise hardly ever do."""
NUM_REGIONS = 20_000
TIMEOUT_S = 300


@pytest.mark.parametrize(
    "flags",
    [
        ("-O2", SLEEPY),
        pytest.param(("-O2",), marks=pytest.mark.slow),
        pytest.param(SANITIZED, marks=pytest.mark.slow),
        pytest.param((*SANITIZED, SLEEPY), marks=pytest.mark.slow),
    ],
    ids=["sleepy", "as it is", "sanitized", "sanitized and sleepy"],
)
def test_each_task_is_run_once(tmp_path: Path, flags: tuple[str, ...]) -> None:
    try:
        compiler = find_compiler()
    except NoCompiler:
        pytest.skip("no C++ compiler was found")
    program = tmp_path / "stress"
    sources = [str(SOURCES / "parallel.cpp"), str(Path(__file__).with_name("parallel_stress.cpp"))]
    subprocess.run([compiler, "-std=c++17", "-pthread", *flags, f"-I{SOURCES}", *sources, "-o", program], check=True)
    command = [program, str(NUM_REGIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")
