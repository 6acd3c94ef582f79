"""Where compiled kernels come from, and what happens where they cannot be had."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from runtime.backends.cpu import build, library
from runtime.backends.cpu.build import (
    ISA_FLAGS,
    CannotBuild,
    find_library,
    hash_compiler,
    hash_sources,
    list_isas,
    seal,
)
from runtime.backends.cpu.library import CpuLibrary, check_library, load_library
from runtime.build import build_engine
from runtime.config import CpuKernels, EngineConfig
from runtime.engine import Engine
from runtime.limits import BatchLimits
from tests.kernels.emulated import COMPILED, EMULATED, load_compiled
from tests.kernels.tiny_graphs import captured_once, random_batch, tiny_bert
from tests.tolerances import check_close

ISAS = list_isas()
ALL = [*ISAS, *EMULATED]
pytestmark = pytest.mark.skipif(not ISAS, reason="a CPU without AVX2")


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "padless" / "kernels"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A library, from the cache of this machine."""
    return load_compiled(ISAS[0]).path.read_bytes()


def write_compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def build_tiny(**options: object) -> Engine:
    config = EngineConfig(threads=1, **options)  # type: ignore[arg-type]
    with captured_once(tiny_bert):
        return build_engine(tiny_bert(), config, BatchLimits(512, 64, 128), silent)


def test_configuration_names_every_instruction_set() -> None:
    assert sorted(get_args(CpuKernels)) == sorted(["auto", "torch", *ISA_FLAGS])


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [
        ("DEFAULT", {"sse4_2"}, ["portable"]),
        ("AVX2", {"avx2"}, ["avx2", "portable"]),
        ("AVX2", {"avx2", "avx_vnni"}, ["avx_vnni", "avx2", "portable"]),
        ("AVX512", {"avx2", "avx512f"}, ["avx512_base", "avx2", "portable"]),
    ],
)
def test_which_sets_a_cpu_has(
    capability: str, flags: set[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(build, "read_cpu_flags", lambda: flags)
    assert list_isas() == expected


class TestWithoutACompiler:
    @pytest.fixture(autouse=True)
    def no_compiler(self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(empty_cache))

    def test_torch_kernels_are_used_and_one_line_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        assert load_library("auto", silent) is None
        (record,) = caplog.records
        assert "could not be built: no C++ compiler was found. Install g++, or set CXX" in record.getMessage()

    def test_kernels_asked_for_by_name_are_refused(self) -> None:
        with pytest.raises(CannotBuild, match=r"no C\+\+ compiler"):
            load_library(ISAS[0], silent)

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
    def test_every_precision_still_runs(self, precision: str) -> None:
        batch = random_batch([5, 1, 30])
        engine = build_tiny(precision=precision)
        assert engine.info.kernels == "torch"
        expected = build_tiny(kind="reference").run(batch).arrays["embeddings"]
        check_close(engine.run(batch).arrays["embeddings"], expected, torch.bfloat16)


class TestCache:
    def test_failed_compiler_is_quoted_and_leaves_nothing(
        self, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(
            "CXX",
            write_compiler(
                tmp_path / "c++", "case $1 in --version) exit;; esac; echo 'x.cpp:1: error: out of luck' >&2; exit 1"
            ),
        )
        with pytest.raises(CannotBuild, match=r"x.cpp:1: error: out of luck"):
            find_library(ISAS[0], silent)
        assert [path.suffix for path in empty_cache.iterdir()] == [".lock"]

    def test_compiler_that_dies_half_way_leaves_no_library(
        self, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Objects are made, linking writes half a file and is killed."""
        script = (
            'case "$*" in --version) exit;; esac; for last; do :; done; echo half > "$last"; '
            'case "$*" in *-shared*) kill -9 $$;; esac'
        )
        monkeypatch.setenv("CXX", write_compiler(tmp_path / "c++", script))
        with pytest.raises(CannotBuild):
            find_library(ISAS[0], silent)
        assert not list(empty_cache.glob("*.so"))

    @pytest.mark.parametrize("damage", ["cut short", "one bit", "empty", "something else"])
    def test_damaged_library_is_made_again_once(
        self, damage: str, whole: bytes, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half a library may load, and end the process when the half that is not there is read."""
        compiled = []

        def compile_at_once(compiler: str, isa: str, path: Path, progress: object) -> None:
            compiled.append(isa)
            path.write_bytes(whole)

        monkeypatch.setattr(build, "compile_library", compile_at_once)
        path = find_library(ISAS[0], silent)
        changed = bytes([whole[0], whole[1] ^ 1]) + whole[2:]
        damages = {
            "cut short": whole[: len(whole) // 2],
            "one bit": changed,
            "empty": b"",
            "something else": b"\x7fELF",
        }
        path.write_bytes(damages[damage])
        loaded = load_library(ISAS[0], silent)
        assert loaded is not None and loaded.path == path
        assert compiled == [ISAS[0]] * 2 and path.read_bytes() == whole

    def test_library_that_cannot_be_loaded_is_passed_over(
        self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def compile_nonsense(compiler: str, isa: str, path: Path, progress: object) -> None:
            path.write_bytes(b"\x7fELF, or so it says")
            seal(path)

        monkeypatch.setattr(build, "compile_library", compile_nonsense)
        assert load_library("auto", silent) is None
        assert "torch's kernels are used" in caplog.text

    def test_another_compiler_gets_its_own_library(self, tmp_path: Path) -> None:
        script = 'echo "c++ (GCC) 13.1"'
        names = {hash_compiler(write_compiler(tmp_path / "c++", script))}
        names.add(hash_compiler(write_compiler(tmp_path / "c++", script.replace("13.1", "13.2"))))
        names.add(hash_compiler(write_compiler(tmp_path / "g++", script)))
        assert len(names) == 3

    def test_library_of_a_compiler_that_is_gone_is_found(
        self, whole: bytes, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A Docker image holds libraries, and no compiler."""
        empty_cache.mkdir(parents=True)
        path = empty_cache / f"padless-{ISAS[0]}-{hash_sources(ISAS[0])}-01234567.so"
        path.write_bytes(whole)
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
        assert find_library(ISAS[0], silent) == path
        path.write_bytes(b"")
        with pytest.raises(CannotBuild, match=r"no C\+\+ compiler"):
            find_library(ISAS[0], silent)

    def test_name_changes_with_everything_it_is_made_from(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.cpp").write_text("int a;")
        monkeypatch.setattr(build, "SOURCES", tmp_path)
        names = {hash_sources("avx2"), hash_sources("avx512")}
        (tmp_path / "a.cpp").write_text("int b;")
        names.add(hash_sources("avx2"))
        (tmp_path / "a.h").write_text("")
        names.add(hash_sources("avx2"))
        monkeypatch.setattr(torch, "__version__", "0.0")
        names.add(hash_sources("avx2"))
        assert len(names) == 5

    def test_processes_that_start_together_compile_once(
        self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled = []

        def compile_slowly(compiler: str, isa: str, path: Path, progress: object) -> None:
            compiled.append(isa)
            time.sleep(0.2)
            path.write_bytes(b"")
            seal(path)

        monkeypatch.setattr(build, "compile_library", compile_slowly)
        threads = [threading.Thread(target=find_library, args=(ISAS[0], silent)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert compiled == [ISAS[0]]

    def test_folder_that_cannot_be_made_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(CannotBuild, match="file/padless/kernels cannot be written"):
            find_library(ISAS[0], silent)

    def test_user_without_a_home_is_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> Path:
            raise RuntimeError("Could not determine home directory.")  # as pathlib does

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", fail)
        assert load_library("auto", silent) is None
        assert "there is no folder for them: Could not determine home directory. Set XDG_CACHE_HOME" in caplog.text


@pytest.mark.skipif(shutil.which("nm") is None, reason="no binutils")
@pytest.mark.parametrize("isa", COMPILED)
def test_a_library_shows_nothing_but_its_kernels(isa: str) -> None:
    """Whatever else it showed, a second library of the process might use in place of its own."""
    path = load_compiled(isa).path
    listed = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[1:] for line in listed.splitlines()]
    assert symbols and {kind for kind, _ in symbols} == {"T", "R"}  # functions, and the tables of structs
    assert [name for _, name in symbols if not name.startswith("padless_")] == []


LOAD_TWO = """
import torch
from tests.kernels.emulated import load_compiled
from tests.kernels.kernel_cases import find_kernels, random_tensor
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED
from runtime.backends.cpu.layouts import pack_fp32

x, weight = random_tensor(128, 32), random_tensor(384, 32, seed=1)
args = (x, pack_fp32(weight), 384, None, "none")
for name in (NAMES) * 2:
    out = torch.empty(128, 384)
    find_kernels(name)[LINEAR_ACT_PACKED.target](*args, out=out)
    torch.testing.assert_close(out, x @ weight.t(), rtol=1e-4, atol=1e-4)
print("both right")
"""


@pytest.mark.slow
@pytest.mark.skipif(len(ALL) < 2, reason="no second instruction set")
@pytest.mark.parametrize("names", [ALL[:2], ALL[1::-1]], ids="-".join)
def test_two_libraries_in_one_process(names: list[str]) -> None:
    """In a process of its own: memory that they shared would be too small for one of them."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_TWO.replace("NAMES", repr(names))], capture_output=True, text=True, check=False
    )
    assert done.stdout == "both right\n", done.stderr


def test_library_that_computes_wrongly_is_refused() -> None:
    loaded = load_library("auto", silent)
    assert loaded is not None
    check_library(loaded)

    class Broken(CpuLibrary):
        def __init__(self) -> None:
            self.isa = "avx2"
            self.kernels = dict.fromkeys(loaded.kernels, lambda *_, **__: None)

    with pytest.raises(CannotBuild, match="compute wrong results"):
        check_library(Broken())


def test_next_best_kernels_are_used_where_the_best_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(isa: str, progress: object) -> Path:
        if isa == "best":
            raise CannotBuild("no room")
        return find_library(isa, silent)

    monkeypatch.setattr(library, "list_isas", lambda: ["best", ISAS[0]])
    monkeypatch.setattr(library, "find_library", find)
    loaded = load_library("auto", silent)
    assert loaded is not None and loaded.isa == ISAS[0]


def test_unknown_cpu_gets_torch_kernels(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(library, "list_isas", list)
    assert load_library("auto", silent) is None
    assert "there are none for this CPU" in caplog.text


def test_torch_can_be_asked_for() -> None:
    assert load_library("torch", silent) is None
