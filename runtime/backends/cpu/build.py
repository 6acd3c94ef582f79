"""Compiles this folder's C++ into one shared library: once per source, compiler, torch version and kind of CPU.

It goes into a cache. It is compiled beside its final name and then renamed, under a lock: processes that start together
compile once. Its name is a hash of everything it was made from, so a stale one is never found; and it ends in a hash of
itself, so that one which a full disk or a crash has cut short is made again.

    python -m runtime.backends.cpu.build [avx2 avx512 ...]     compile ahead, as `make setup` and the Docker image do
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from runtime.backends.cpu.structs import declare_structs, export_places
from runtime.backends.cpu.table import KERNELS
from runtime.cache import cache_dir
from runtime.engine import Progress

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-std=c++17", "-O3", "-falign-loops=64", "-fopenmp-simd", "-pthread", "-fPIC", "-Wno-maybe-uninitialized")
"""Loops are aligned because the short ones are up to a tenth slower where they lie badly."""
EXPORTS = "{ global: padless_*; local: *; };"
"""The linker's version script. What several libraries of one process define is otherwise there once for all of them:
templates' static memory, whose size depends on the instruction set."""
ISA_FLAGS = {
    "amx": ("-march=x86-64-v4", "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
    "avx512": ("-march=x86-64-v4", "-mavx512vnni"),
    "avx512_base": ("-march=x86-64-v4",),
    "avx_vnni": ("-march=x86-64-v3", "-mavxvnni"),
    "avx2": ("-march=x86-64-v3",),
    "portable": (),
}
"""Instruction sets there are kernels for, the best one first. `avx512` has VNNI, `avx512_base` has not; `avx_vnni` has
it for 256 bits. `portable`: what every CPU of this architecture has, in vectors of 128 bits."""
OVERFLOW_FREE = ("avx512_base", "avx2")
"""Those whose kernels add products of bytes in 16 bits: see add_products in kernels/gemm_int8.h."""


class CannotBuild(RuntimeError):
    """No kernels can be compiled here; the text says why, in a line."""


class NoCompiler(Exception):
    """There is none on this machine."""


def list_isas() -> list[str]:
    """The instruction sets of ISA_FLAGS that this CPU has."""
    capability = torch.backends.cpu.get_cpu_capability()
    has_vnni = capability == "AVX512" and torch.cpu._is_vnni_supported()
    # The second asks the system for the tiles' registers, once for the process.
    has_amx = has_vnni and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()
    has = {
        "amx": has_amx,  # there is none without products of bf16
        "avx512_bf16": has_vnni and torch.cpu._is_avx512_bf16_supported(),
        "avx512": has_vnni,
        "avx512_base": capability == "AVX512",
        "avx_vnni": capability in ("AVX2", "AVX512") and "avx_vnni" in read_cpu_flags(),
        "avx2": capability in ("AVX2", "AVX512"),
        "portable": True,
    }
    return [isa for isa in ISA_FLAGS if has[isa]]


def read_cpu_flags() -> set[str]:
    """The system's names for what the CPU has, where it lists them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def find_library(isa: str, progress: Progress) -> Path:
    """The compiled library for an instruction set, from the cache or made now. Raises CannotBuild."""
    try:
        folder = cache_dir("kernels")
    except RuntimeError as error:  # there is no home
        raise CannotBuild(f"there is no folder for them: {error} Set XDG_CACHE_HOME") from None
    try:
        compiler = find_compiler()
        path = folder / f"padless-{isa}-{hash_sources(isa)}-{hash_compiler(compiler)}.so"
        if is_whole(path):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not is_whole(path):
                compile_library(compiler, isa, path, progress)
    except NoCompiler:
        return find_any(folder, isa)
    except OSError as error:
        raise CannotBuild(f"{folder} cannot be written ({error.strerror})") from None
    return path


def find_any(folder: Path, isa: str) -> Path:
    """A library that some compiler has made of these sources: a Docker image brings them along."""
    for path in sorted(folder.glob(f"padless-{isa}-{hash_sources(isa)}-*.so")):
        if is_whole(path):
            return path
    raise CannotBuild("no C++ compiler was found. Install g++, or set CXX")


def hash_sources(isa: str) -> str:
    digest = hashlib.sha256(repr((torch.__version__, FLAGS, EXPORTS, ISA_FLAGS[isa])).encode())
    sources = {path.name: path.read_text() for pattern in ("*.cpp", "*.h") for path in SOURCES.glob(pattern)}
    for name, text in sorted((sources | write_generated()).items()):
        digest.update(f"{name}\0{text}".encode())
    return digest.hexdigest()[:16]


def write_generated() -> dict[str, str]:
    """Sources that follow from the ops, by name."""
    structs = [spec.struct for spec in KERNELS]
    return {"structs.h": declare_structs(structs), "places.cpp": export_places(structs)}


def find_compiler() -> str:
    """Raises NoCompiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        raise NoCompiler
    return compiler


def hash_compiler(compiler: str) -> str:
    """Of its place and of what it calls itself, of which it changes one when it is replaced."""
    version = run_compiler([compiler, "--version"])
    return hashlib.sha256(f"{os.path.realpath(compiler)}\n{version}".encode()).hexdigest()[:8]


def seal(path: Path) -> None:
    """Append the hash of what is there."""
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())


def is_whole(path: Path) -> bool:
    """Whether there is a library, with all that was sealed. Half of one might load, and end the process later."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system releases it if that process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_library(compiler: str, isa: str, path: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as name:
        folder = Path(name)
        for file, text in write_generated().items():
            (folder / file).write_text(text)
        sources = sorted([*SOURCES.glob("*.cpp"), *folder.glob("*.cpp")])
        includes = [f"-I{folder}", f"-I{SOURCES}"]
        command = [compiler, *FLAGS, *ISA_FLAGS[isa], *includes, "-c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [
                pool.submit(run_compiler, [*command, str(source), "-o", str(folder / f"{source.stem}.o")])
                for source in sources
            ]
            for index, done in enumerate(compiled):
                progress("compiling CPU kernels", index, len(sources))
                done.result()
        # Not linked against OpenMP: the number of threads is asked of the one that torch has loaded.
        objects = [str(folder / f"{source.stem}.o") for source in sources]
        exports = folder / "exports.map"
        exports.write_text(EXPORTS)
        run_compiler([compiler, "-shared", f"-Wl,--version-script={exports}", *objects, "-o", str(folder / path.name)])
        seal(folder / path.name)
        os.replace(folder / path.name, path)
    progress("compiling CPU kernels", len(sources), len(sources))


def run_compiler(command: list[str]) -> str:
    """What it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise CannotBuild(f"{command[0]} failed: {first[:300]}")
    return done.stdout


def main() -> None:
    """What is named has to be made; else the best for this CPU, or word of why torch's kernels will do."""
    named = sys.argv[1:]
    for isa in named or list_isas()[:1]:
        try:
            print(find_library(isa, lambda what, done, total: print(f"{what}: {done} of {total}")))
        except CannotBuild as error:
            if named:
                raise
            print(f"torch's kernels will be used, which are slower: {error}")


if __name__ == "__main__":
    main()
