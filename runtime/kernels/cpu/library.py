"""The compiled kernels as Python calls them: signatures, loading, and a check that they compute rightly."""

import ctypes
import logging
import struct
from collections.abc import Callable, Iterable
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from runtime.engine import Progress
from runtime.kernels.cpu.build import CannotBuild, find_library, list_isas
from runtime.ops.quantized_rows import quantize_rows

logger = logging.getLogger("padless")

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
"""Types of rows by the numbers of `Kind` in rows.h; uint8 are quantised rows."""
CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""Types of a cache by the numbers of `with_cache_type` in kv_cache.h."""
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")
"""In the order of `Activation` in activation.h."""
POOLINGS = ("mean", "max", "cls", "last")
"""In the order of `Pooling` in pool.cpp."""
PANEL = 16
"""Columns of a packed weight that lie together; PANEL in gemm.h."""

CType = type[c_void_p] | type[c_int64] | type[c_float]
MATRIX: tuple[CType, ...] = (c_void_p, c_int64, c_int64)  # data, stride, kind
SIGNATURES: dict[str, tuple[CType, ...]] = {
    "varlen_attention": (
        *(c_void_p, c_int64) * 3,  # q, k, v and their strides
        c_int64,  # their kind
        c_void_p,
        c_void_p,
        *(c_int64,) * 3,  # num_seqs, num_heads, head_dim
        c_float,
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
        c_void_p,
        c_int64,
    ),
    "paged_attention": (
        *(c_void_p, c_int64) * 3,  # q, k, v and their strides
        c_int64,  # their kind
        *(c_void_p, c_int64, c_int64),  # cache of one layer, kind, num_blocks
        *(c_void_p, c_void_p, c_int64),  # slots, block_table, max_blocks
        *(c_void_p, c_void_p),  # cu_seqlens, cache_seqlens
        *(c_void_p, c_void_p, c_int64, c_int64),  # positions, rotary, num_positions, rotary_dim
        *(c_int64,) * 5,  # num_tokens, num_seqs, num_heads, num_kv_heads, head_dim
        *(c_float, c_int64, c_float),
        *(c_void_p, c_int64),
    ),
    "linear_act": (*MATRIX, c_void_p, *(c_int64,) * 3, c_void_p, c_int64, *MATRIX, *MATRIX),
    "linear_bf16": (*MATRIX, c_void_p, *(c_int64,) * 3, c_void_p, c_int64, *MATRIX, *MATRIX),
    "linear_int8": (
        *(*MATRIX, c_void_p, *(c_int64,) * 3, c_void_p, c_float, c_int64),
        *(c_void_p, c_int64, *MATRIX, *MATRIX, c_void_p, c_float, c_int64),
    ),
    "add_norm": (
        *(*MATRIX, c_int64, *MATRIX, c_int64, c_int64, c_void_p, c_void_p, c_float, c_int64),
        *(*MATRIX, c_void_p, c_float, c_int64),
    ),
    "gated_act": (*MATRIX, *(c_int64,) * 3, *MATRIX, c_void_p, c_float, c_int64),
    "embed_norm": (*(c_void_p,) * 3, *(c_int64,) * 4, c_void_p, c_void_p, c_float, *MATRIX),
    "pool": (*MATRIX, c_void_p, *(c_int64,) * 4, c_void_p, c_void_p),
}
COUNTS_WRONG = frozenset({"paged_attention", "embed_norm"})
"""Kernels that count how many of their inputs are wrong."""
WORDS: dict[CType, str] = {c_void_p: "Q", c_int64: "q", c_float: "f4x"}
"""How `struct` lays an argument into a word of tape.h."""


class CpuKernel:
    """A function of the library. Tensors stand for the addresses of their first elements, None for no address."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.function = library[f"padless_{name}"]
        self.function.argtypes = SIGNATURES[name]
        self.function.restype = c_int64 if name in COUNTS_WRONG else None
        self.words = struct.Struct("".join(WORDS[kind] for kind in SIGNATURES[name]))
        self.player = ctypes.cast(library[f"padless_play_{name}"], c_void_p).value
        self.play_tape = bind(library, "run_tape", c_void_p, c_int64)

    def __call__(self, *args: object) -> int:
        """How many of the inputs are wrong, where the kernel counts that, else 0."""
        return self.function(*map(to_plain, args)) or 0

    def encode(self, args: Iterable[object]) -> bytes:
        """The arguments as the words that `player` takes: tape.h."""
        return self.words.pack(*(to_plain(arg) or 0 for arg in args))


def to_plain(arg: object) -> object:
    if isinstance(arg, Tensor):
        return arg.data_ptr()
    return ctypes.addressof(arg) if isinstance(arg, ctypes.Array) else arg


class CpuLibrary:
    """The kernels of one instruction set. Raises OSError where the file cannot be loaded."""

    def __init__(self, path: Path, isa: str) -> None:
        self.isa, self.path = isa, path
        library = ctypes.CDLL(str(path))
        self.varlen_attention = CpuKernel(library, "varlen_attention")
        self.paged_attention = CpuKernel(library, "paged_attention")
        self.linear_act = CpuKernel(library, "linear_act")
        self.linear_bf16 = CpuKernel(library, "linear_bf16")
        self.linear_int8 = CpuKernel(library, "linear_int8")
        self.add_norm = CpuKernel(library, "add_norm")
        self.gated_act = CpuKernel(library, "gated_act")
        self.embed_norm = CpuKernel(library, "embed_norm")
        self.pool = CpuKernel(library, "pool")
        rounding = (*(c_void_p, c_int64, c_int64) * 2, c_void_p, c_void_p)
        self.quantize_weight = bind(library, "quantize_weight", *rounding)
        self.peak_fp32 = bind(library, "peak_fp32", c_int64)
        self.peak_int8 = bind(library, "peak_int8", c_int64)


def bind(library: ctypes.CDLL, name: str, *args: object) -> Callable[..., int]:
    function = library[f"padless_{name}"]
    function.argtypes, function.restype = args, c_int64  # type: ignore[assignment]
    return function


def load_library(wanted: str, progress: Progress) -> CpuLibrary | None:
    """The best kernels this machine can have, or those of one instruction set; None for torch's own, said in a line.

    `wanted`: auto, torch, or a name in ISA_FLAGS. Raises CannotBuild for a named set that is not to be had.
    """
    if wanted == "torch":
        return None
    isas = list_isas()
    if wanted != "auto" and wanted not in isas:
        raise CannotBuild(f"this CPU has no {wanted}; it has {', '.join(isas) or 'none that there are kernels for'}")
    reason = "this CPU has neither AVX2 nor AVX512"
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
    shape, fixed, nothing = (7, 40, 33), (None, 0.0, 0), (None, 0, *NO_MATRIX)
    library.linear_act(*matrix(x), pack_fp32(weight), *shape, *nothing, *matrix(fp32))
    library.linear_bf16(*matrix(x), pack_bf16(weight), *shape, *nothing, *matrix(bf16))
    rows, packed = quantize_rows(x, scale=1.0), pack_int8(weight.to(torch.int8), torch.ones(40))
    library.linear_int8(*matrix(rows), packed, *shape, *fixed, *nothing, *matrix(int8), *fixed)
    if not all(torch.equal(out, x @ weight.t()) for out in (fp32, bf16, int8)):
        raise CannotBuild(f"the {library.isa} kernels compute wrong results on this machine")


NO_MATRIX = (None, 0, 0)


def matrix(x: Tensor) -> tuple[Tensor, int, int]:
    """Data, row stride in elements, kind. The last dimension must be dense."""
    return x, x.stride(0), KINDS[x.dtype]


def pack_fp32(weight: Tensor) -> Tensor:
    """[out_features, in_features] -> [panels, in_features, 16], zero columns added at the end."""
    num_columns, depth = weight.shape
    padded = weight.new_zeros(round_up(num_columns, PANEL), depth)
    padded[:num_columns] = weight
    return padded.view(-1, PANEL, depth).transpose(1, 2).contiguous()


def pack_bf16(weight: Tensor) -> Tensor:
    """[out_features, in_features] -> bf16 [panels, in_features / 2, 16, 2], zeros added to whole panels of tiles."""
    num_columns, depth = weight.shape
    padded = weight.new_zeros(round_up(num_columns, PANEL), round_up(depth, 32), dtype=torch.bfloat16)
    padded[:num_columns, :depth] = weight
    return padded.view(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def pack_int8(values: Tensor, scale: Tensor) -> Tensor:
    """int8 [out_features, in_features], fp32 [out_features] -> bytes: scales, column sums, panels (linear_int8.cpp)."""
    num_columns, depth = values.shape
    padded = values.new_zeros(round_up(num_columns, PANEL), round_up(depth, 64))
    padded[:num_columns, :depth] = values
    panels = padded.view(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
    scales = torch.zeros(round_up(num_columns, 2 * PANEL))
    sums = torch.zeros_like(scales, dtype=torch.int32)
    scales[:num_columns], sums[:num_columns] = scale, values.int().sum(1)
    return torch.cat([part.view(-1).view(torch.uint8) for part in (scales, sums, panels)])


def pad_bias(bias: Tensor) -> Tensor:
    """fp32, zeros added up to a whole panel."""
    padded = torch.zeros(round_up(len(bias), PANEL))
    padded[: len(bias)] = bias
    return padded


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
