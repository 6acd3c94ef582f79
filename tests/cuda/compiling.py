"""Kernels compiled for devices that are not here: what Triton and ptxas make of a launcher's very launches."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import triton
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.compiler.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from tests.cuda.interpreting import list_modules

SHARED_BYTES = {80: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""What a program may have: of what is compiled for A100 (8.0), on the smaller devices that run it too, of capability
8.6 and 8.9; and of H100 (9.0)."""
CAPABILITIES = (80, 90)
FP8_CAPABILITIES = (89, 90)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments that it was launched with."""

    kernel: "JITFunction[Any]"
    args: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What a program of a compiled kernel takes: `registers` of each thread, `stack_bytes` of what did not fit them."""

    name: str
    capability: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int

    def check(self) -> None:
        assert not self.stack_bytes, f"spills: {self}"
        assert self.shared_bytes <= SHARED_BYTES[self.capability], f"more shared memory than devices have: {self}"


@dataclass(frozen=True)
class Recorder:
    """Stands for a kernel, and only remembers its launches."""

    kernel: "JITFunction[Any]"
    launches: list[Launch]

    def __getitem__(self, grid: object) -> Any:
        return lambda *args, **options: self.launches.append(Launch(self.kernel, args, options))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """What the launchers of modules that are imported already launch, on tensors of any device. Nothing is computed."""
    launches: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in list_modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    patch.setattr(module, name, Recorder(value, launches))
        yield launches


def compile_launch(launch: Launch, capability: int) -> Report:
    compiled = compile_kernel(launch, capability)
    registers, stack_bytes = read_usage(compiled.asm["cubin"])
    name, metadata = launch.kernel.__name__, compiled.metadata
    return Report(name, capability, registers, stack_bytes, metadata.shared, metadata.num_warps)


def compile_kernel(launch: Launch, capability: int) -> CompiledKernel:
    """As JITFunction.run does, for a device of this capability: with the same specialisation of its arguments."""
    kernel, target = launch.kernel, GPUTarget("cuda", capability, 32)
    backend, options = make_backend(target), dict(launch.options) | {"debug": False}
    bound, specialization, rest = bind(launch, backend)
    made, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, rest)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=made.__dict__)


def bind(launch: Launch, backend: BaseBackend) -> Any:
    """The arguments by their names, what Triton specialises on of each, and the options."""
    kernel = launch.kernel
    return create_function_from_signature(kernel.signature, kernel.params, backend)(
        *launch.args, **launch.options, debug=False
    )


def name_variant(launch: Launch) -> str:
    """What a launch is compiled for: equal for those that share a program."""
    _, specialization, options = bind(launch, make_backend(GPUTarget("cuda", CAPABILITIES[0], 32)))
    return f"{launch.kernel.__name__} {specialization} {options}"


def read_usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of the stack, which are what was spilled: Triton has no arrays."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    assert found is not None, said.stdout
    return int(found[1]), int(found[2])
