"""A region runs each task once, whoever takes it, and is over when all are done."""

import subprocess
from pathlib import Path

import pytest

from runtime.backends.cpu.build import SOURCES, NoCompiler, find_compiler


@pytest.mark.parametrize(
    ("flags", "num_regions"),
    [
        (("-O2",), 20_000),
        pytest.param(("-O1", "-g", "-fsanitize=thread"), 20_000, marks=pytest.mark.slow),
    ],
    ids=["as it is", "thread sanitizer"],
)
def test_each_task_is_run_once(tmp_path: Path, flags: tuple[str, ...], num_regions: int) -> None:
    try:
        compiler = find_compiler()
    except NoCompiler:
        pytest.skip("no C++ compiler was found")
    program = tmp_path / "stress"
    sources = [str(SOURCES / "parallel.cpp"), str(Path(__file__).with_name("parallel_stress.cpp"))]
    subprocess.run([compiler, "-std=c++17", "-pthread", *flags, f"-I{SOURCES}", *sources, "-o", program], check=True)
    done = subprocess.run([program, str(num_regions)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")
