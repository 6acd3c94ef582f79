"""The compiled kernels under the signatures of their ops: the op's arguments, and `out`."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.kernels.cpu.library import (
    ACTIVATIONS,
    CACHE_KINDS,
    KINDS,
    NO_MATRIX,
    POOLINGS,
    CpuKernel,
    CpuLibrary,
    matrix,
)
from runtime.ops.varlen_attention import find_reach


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A kernel and its arguments, to be run as often as their tensors get new contents."""

    kernel: CpuKernel
    args: tuple[object, ...]
    copies: tuple[tuple[Tensor, Tensor], ...] = ()
    """(from, to): dense copies, made before each run, of what does not lie as the kernel wants it."""
    wrong: str = ""
    """What the inputs that the kernel counts have wrong with them."""
    keeps: tuple[object, ...] = ()
    """What `args` only holds addresses of."""

    def run(self) -> None:
        """Raises IndexError where inputs are out of range; nothing is computed then."""
        self.copy_inputs()
        num_wrong = self.kernel(*self.args)
        if num_wrong:
            raise IndexError(f"{num_wrong} of the batch's {self.wrong}")

    def copy_inputs(self) -> None:
        for source, copy in self.copies:
            copy.copy_(source)


@dataclass(frozen=True, slots=True)
class NativeKernel:
    """A kernel of the table: called, it runs; `prepare` gives the call to run later."""

    prepare: Callable[..., NativeCall]

    def __call__(self, *args: object, **options: object) -> None:
        self.prepare(*args, **options).run()


@dataclass(slots=True)
class Copies:
    """Mutable: grows by a pair for each tensor that does not lie as its kernel wants it."""

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def take(self, source: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """A dense copy, in another type if one is given."""
        copy = torch.empty_like(source, dtype=dtype, memory_format=torch.contiguous_format)
        self.pairs.append((source, copy))
        return copy

    def dense(self, x: Tensor) -> Tensor:
        return x if x.is_contiguous() else self.take(x)

    def heads(self, x: Tensor) -> Tensor:
        return x if has_dense_heads(x) else self.take(x)

    def rows(self, x: Tensor) -> Tensor:
        """As a matrix whose rows are dense; a view wherever torch can give one."""
        matrix_ = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if matrix_.data_ptr() == x.data_ptr() and (matrix_.stride(1) == 1 or matrix_.shape[1] == 1):
            return matrix_
        return self.take(x).view(-1, x.shape[-1])


class CpuKernels:
    """Each method prepares a call of the C++ kernel of its name. Weights are converted once, activations each time."""

    def __init__(self, library: CpuLibrary) -> None:
        self.library = library

    def varlen_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool = False,
        window: int = -1,
        bias: Tensor | None = None,
        *,
        out: Tensor,
    ) -> NativeCall:
        copies = Copies()
        q, k, v = (copies.heads(x) for x in (q, k, v))
        reach = 0
        if bias is not None:
            reach = find_reach(bias, max(max_seqlen_q, max_seqlen_k))
            bias = copies.dense(bias) if bias.dtype == torch.float32 else copies.take(bias, dtype=torch.float32)
        args = (
            *(q, q.stride(0), k, k.stride(0), v, v.stride(0), KINDS[q.dtype]),
            *(cu_seqlens_q, cu_seqlens_k, len(cu_seqlens_q) - 1, *q.shape[1:]),
            *(softmax_scale, causal, window, bias, reach, out, out.stride(0)),
        )
        return NativeCall(self.library.varlen_attention, args, tuple(copies.pairs))

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv_cache: Tensor,
        layer: int,
        slot_mapping: Tensor,
        block_table: Tensor,
        cu_seqlens: Tensor,
        cache_seqlens: Tensor,
        max_seqlen: int,
        softmax_scale: float,
        position_ids: Tensor | None = None,
        rotary: Tensor | None = None,
        window: int = -1,
        softcap: float = 0.0,
        *,
        out: Tensor,
    ) -> NativeCall:
        copies = Copies()
        q, k, v = (copies.heads(x) for x in (q, k, v))
        num_layers, num_blocks, _, num_kv_heads, _ = kv_cache.shape
        if not 0 <= layer < num_layers:
            raise IndexError(f"there is no layer {layer} in a cache of {num_layers}")
        assert kv_cache.is_contiguous(), "The kernel knows the cache by its shape. This is a bug."
        slots, table = copies.dense(slot_mapping), copies.dense(block_table)
        rotary = None if rotary is None else copies.dense(rotary)
        positions = None if position_ids is None else copies.dense(position_ids)
        args = (
            *(q, q.stride(0), k, k.stride(0), v, v.stride(0), KINDS[q.dtype]),
            *(kv_cache[layer], CACHE_KINDS[kv_cache.dtype], num_blocks, slots, table, table.shape[1]),
            *(cu_seqlens, cache_seqlens, positions, rotary, *((0, 0) if rotary is None else rotary.shape)),
            *(q.shape[0], len(cache_seqlens), q.shape[1], num_kv_heads, q.shape[2]),
            *(softmax_scale, window, softcap, out, out.stride(0)),
        )
        wrong = "slots, blocks, positions or lengths are out of range"
        return NativeCall(self.library.paged_attention, args, tuple(copies.pairs), wrong)

    def linear_act(
        self,
        x: Tensor,
        packed: Tensor,
        out_features: int,
        bias: Tensor | None,
        act: str,
        residual: Tensor | None = None,
        *,
        out: Tensor,
    ) -> NativeCall:
        copies = Copies()
        x, residual = copies.rows(x), None if residual is None else copies.rows(residual)
        args = (
            *(*matrix(x), packed, x.shape[0], out_features, x.shape[1], bias, ACTIVATIONS.index(act)),
            *(*optional_matrix(residual), *matrix(flatten(out))),
        )
        return NativeCall(self.library.linear_act, args, tuple(copies.pairs))

    def linear_int8(
        self,
        x: Tensor,
        packed: Tensor,
        out_features: int,
        in_features: int,
        bias: Tensor | None,
        act: str,
        residual: Tensor | None,
        inverse_smooth: Tensor | None,
        x_scale: float,
        x_zero: int,
        dtype: torch.dtype,
        out_inverse_smooth: Tensor | None,
        out_scale: float,
        out_zero: int,
        *,
        out: Tensor,
    ) -> NativeCall:
        copies = Copies()
        x, residual = copies.rows(x), None if residual is None else copies.rows(residual)
        args = (
            *(*matrix(x), packed, x.shape[0], out_features, in_features, inverse_smooth, x_scale, x_zero),
            *(bias, ACTIVATIONS.index(act), *optional_matrix(residual), *matrix(out)),
            *(out_inverse_smooth, out_scale, out_zero),
        )
        return NativeCall(self.library.linear_int8, args, tuple(copies.pairs))

    def add_norm(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        is_rms: bool = False,
        dtype: torch.dtype | None = None,
        out_inverse_smooth: Tensor | None = None,
        out_scale: float = 0.0,
        out_zero: int = 0,
        *,
        out: Tensor,
    ) -> NativeCall:
        copies, heads = Copies(), 1
        if x.dim() == 3 and has_dense_heads(x):
            heads = x.shape[1]
        else:
            x = copies.rows(x)
        residual = None if residual is None else copies.rows(residual)
        weight, bias = weight.float(), None if bias is None else bias.float()
        shape = (x.numel() // x.shape[-1], x.shape[-1])
        args = (
            *(*matrix(x), heads, *optional_matrix(residual), *shape, weight, bias, eps, is_rms),
            *(*matrix(flatten(out)), out_inverse_smooth, out_scale, out_zero),
        )
        return NativeCall(self.library.add_norm, args, tuple(copies.pairs))

    def layer_norm(
        self,
        x: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = False,
        *,
        out: Tensor,
    ) -> NativeCall:
        weight = torch.ones(normalized_shape) if weight is None else weight
        return self.add_norm(x, None, weight, bias, eps, out=out)

    def gated_act(
        self,
        x: Tensor,
        act: str,
        dtype: torch.dtype | None = None,
        out_inverse_smooth: Tensor | None = None,
        out_scale: float = 0.0,
        out_zero: int = 0,
        *,
        out: Tensor,
    ) -> NativeCall:
        copies = Copies()
        x = copies.rows(x)
        args = (
            *(*matrix(x), x.shape[0], x.shape[1] // 2, ACTIVATIONS.index(act), *matrix(out)),
            *(out_inverse_smooth, out_scale, out_zero),
        )
        return NativeCall(self.library.gated_act, args, tuple(copies.pairs))

    def embed_norm(
        self, tables: list[Tensor], indices: list[Tensor], weight: Tensor, bias: Tensor, eps: float, *, out: Tensor
    ) -> NativeCall:
        copies = Copies()
        indices, weight, bias = [copies.dense(index) for index in indices], weight.float(), bias.float()
        args = (
            *(list_addresses(tables), list_addresses(indices), (ctypes.c_int64 * len(tables))(*map(len, tables))),
            *(len(tables), KINDS[tables[0].dtype], *out.shape, weight, bias, eps, *matrix(out)),
        )
        wrong, keeps = "ids or positions are out of their embedding's range", (*tables, *indices)
        return NativeCall(self.library.embed_norm, args, tuple(copies.pairs), wrong, keeps)

    def pool(
        self, hidden_states: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool = False, *, out: Tensor
    ) -> NativeCall:
        shape = (len(cu_seqlens) - 1, hidden_states.shape[1])
        args = (*matrix(hidden_states), cu_seqlens, *shape, POOLINGS.index(mode), normalize, out)
        return NativeCall(self.library.pool, args)


def has_dense_heads(x: Tensor) -> bool:
    return x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1)


def flatten(out: Tensor) -> Tensor:
    """A place to write to, as a matrix."""
    return out if out.dim() == 2 else out.view(-1, out.shape[-1])


def list_addresses(tensors: list[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def optional_matrix(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    return NO_MATRIX if x is None else matrix(x)
