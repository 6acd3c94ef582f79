"""The compiled kernels of instruction sets that this CPU lacks: the same sources, with those instructions emulated.

Only their results mean anything. They run hundreds of times slower, so their tests are slow ones.
"""

import hashlib
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from runtime.backends.cpu.build import ISA_FLAGS, OVERFLOW_FREE, find_library, list_isas
from runtime.backends.cpu.library import CpuLibrary, check_library, load_library

HEADERS = Path(__file__).parent / "emulation"
NATIVE = list_isas()
EMULATED = [f"emulated-{isa}" for isa in ISA_FLAGS if isa not in NATIVE and "avx2" in NATIVE]
FAST, SLOW = [name for name in NATIVE if name != "portable"], ["portable", *EMULATED]
COMPILED = [*FAST, *(pytest.param(name, marks=pytest.mark.slow if FAST else ()) for name in SLOW)]
"""Every instruction set that there are kernels for. What every CPU has is slow, and tested with the emulated ones."""


def needs_overflow_free(name: str) -> bool:
    return name.removeprefix("emulated-") in OVERFLOW_FREE


def list_flags(name: str) -> tuple[str, ...]:
    header = HEADERS / f"{name.removeprefix('emulated-')}.h"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(HEADERS.glob("*.h"))))
    # The macro is there for the library's name, which is a hash of the flags.
    return ("-O1", "-march=x86-64-v3", "-Wno-psabi", "-include", str(header), f"-DEMULATION=0x{digest.hexdigest()[:8]}")


@cache
def load_compiled(name: str) -> CpuLibrary:
    if name not in EMULATED:
        library = load_library(name, lambda *_: None)
        assert library is not None
        return library
    with patch.dict(ISA_FLAGS, {name: list_flags(name)}):
        path = find_library(name, lambda *_: None)
    # By its own name it has its own weights: OVERFLOW_FREE knows no emulated ones.
    library = CpuLibrary(path, name.removeprefix("emulated-"))
    check_library(library)
    return library
