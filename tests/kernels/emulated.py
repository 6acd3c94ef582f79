"""The compiled kernels of instruction sets that this CPU lacks: the same sources, with those instructions emulated.

Only their results mean anything. They run hundreds of times slower, so their tests are slow ones.
"""

import hashlib
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from runtime.backends.cpu.build import ISA_FLAGS, find_library, list_isas
from runtime.backends.cpu.library import CpuLibrary, check_library, load_library

HEADERS = Path(__file__).parent / "emulation"
EMULATED = [f"emulated-{isa}" for isa in ("avx512", "avx512_bf16", "amx") if isa not in list_isas() and list_isas()]
COMPILED = [*list_isas(), *(pytest.param(name, marks=pytest.mark.slow) for name in EMULATED)]
"""Every instruction set that there are kernels for."""


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
        library = CpuLibrary(find_library(name, lambda *_: None), name)
    check_library(library)
    return library
