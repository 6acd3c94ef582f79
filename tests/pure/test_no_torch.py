"""Neither these tests nor the code they test need torch. A fresh process proves it: in this one others may have."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_nothing_here_imports_torch() -> None:
    names = [f"tests.pure.{path.stem}" for path in sorted(HERE.glob("*.py"))]
    script = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
