"""A compiled library: its kernels by op, loading, and a check that it fits this code and computes rightly."""

import ctypes
import logging
from pathlib import Path

import torch
from torch import Tensor

from runtime.backends.cpu.build import CannotBuild, find_library, list_isas
from runtime.backends.cpu.layouts import pack_bf16, pack_fp32, pack_int8
from runtime.backends.cpu.native import NativeKernel
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED, LINEAR_INT8_PACKED, ROUND_CHANNELS, round_channels_shape
from runtime.backends.cpu.structs import list_places
from runtime.backends.cpu.table import KERNELS
from runtime.engine import Progress
from runtime.ops.quantized_rows import quantize_rows

logger = logging.getLogger("padless")


class CpuLibrary:
    """The kernels of one instruction set. Raises OSError where the file cannot be loaded, CannotBuild where its structs
    are not laid out as this code has them."""

    def __init__(self, path: Path, isa: str) -> None:
        self.isa, self.path = isa, path
        library = ctypes.CDLL(str(path))
        for spec in KERNELS:
            places = list_places(spec.struct)
            found = (ctypes.c_int64 * len(places)).in_dll(library, f"padless_places_{spec.op.name}")
            if list(found) != places:
                raise CannotBuild(f"{path} was compiled from other structs: {spec.op.name}")
        self.kernels: dict[object, NativeKernel] = {spec.op.target: NativeKernel(library, spec) for spec in KERNELS}
        self.peaks = {name: library[f"padless_peak_{name}"] for name in ("fp32", "bf16", "int8")}
        """By type: computes for so many rounds on one thread, and returns how many multiply-adds that were."""
        self.wait_cycles = library.padless_wait_cycles
        """Takes so many cycles of the clock."""
        for measure in (*self.peaks.values(), self.wait_cycles):
            measure.argtypes, measure.restype = (ctypes.c_int64,), ctypes.c_int64

    def round_channels(self, weight: Tensor, limits: tuple[float, ...], overflow_free: bool) -> tuple[Tensor, Tensor]:
        """`quantization.weights.RoundChannels`."""
        scale, places = torch.empty(len(weight)), torch.tensor(limits)
        values = round_channels_shape(weight)
        self.kernels[ROUND_CHANNELS.target](weight, places, overflow_free, scale, out=values)
        return values.transpose(0, 1), scale


def load_library(wanted: str, progress: Progress) -> CpuLibrary | None:
    """The best kernels this machine can have, or those of one instruction set; None for torch's own, said in a line.

    `wanted`: auto, torch, or a name in ISA_FLAGS. Raises CannotBuild for a named set that is not to be had.
    """
    if wanted == "torch":
        return None
    isas = list_isas()
    if wanted != "auto" and wanted not in isas:
        raise CannotBuild(f"this CPU has no {wanted}; it has {', '.join(isas) or 'none that there are kernels for'}")
    reason = "there are none for this CPU"
    for isa in isas if wanted == "auto" else [wanted]:
        try:
            library = CpuLibrary(find_library(isa, progress), isa)
            check_library(library)
            return library
        except (CannotBuild, OSError) as error:
            reason = f"the {isa} kernels could not be built: {error}"
    if wanted != "auto":
        raise CannotBuild(reason)
    logger.warning("torch's kernels are used, which are slower: %s", reason)
    return None


def check_library(library: CpuLibrary) -> None:
    """Multiply small matrices of whole numbers, in fp32, bf16 and int8. Raises CannotBuild where the library cannot."""
    x = torch.arange(7 * 33, dtype=torch.float32).view(7, 33) % 5
    weight = torch.arange(40 * 33, dtype=torch.float32).view(40, 33) % 7 - 3
    fp32, bf16, int8 = torch.full((3, 7, 40), float("nan"))
    library.kernels[LINEAR_ACT_PACKED.target](x, pack_fp32(weight), 40, out=fp32)
    library.kernels[LINEAR_ACT_PACKED.target](x, pack_bf16(weight), 40, out=bf16)
    rows, packed = quantize_rows(x, scale=1.0), pack_int8(weight.to(torch.int8), torch.ones(40))
    library.kernels[LINEAR_INT8_PACKED.target](rows, packed, 40, 33, out=int8)
    if not all(torch.equal(out, x @ weight.t()) for out in (fp32, bf16, int8)):
        raise CannotBuild(f"the {library.isa} kernels compute wrong results on this machine")
