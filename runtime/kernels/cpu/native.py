"""The compiled kernels under the signatures of their ops: the op's arguments, and `out`."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

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
    round_up,
)
from runtime.ops.varlen_attention import find_reach


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A kernel and its arguments."""

    kernel: CpuKernel
    args: tuple[object, ...]
    is_lasting: bool = True
    """Whether it can run again when its tensors have got new contents; not if some were copied to lie dense."""
    wrong: str = ""
    """What the inputs that the kernel counts have wrong with them."""
    keeps: tuple[object, ...] = ()
    """What `args` only holds addresses of."""

    def run(self) -> None:
        """Raises IndexError where inputs are out of range."""
        num_wrong = self.kernel(*self.args)
        if num_wrong:
            raise IndexError(f"{num_wrong} of the batch's {self.wrong}")


@dataclass(frozen=True, slots=True)
class NativeKernel:
    """A kernel of the table: called, it runs; `prepare` gives the call to run later."""

    prepare: Callable[..., NativeCall]

    def __call__(self, *args: object, **options: object) -> None:
        self.prepare(*args, **options).run()


@dataclass(slots=True)
class Dense:
    """Gives tensors as a kernel wants them to lie. Mutable: whether one had to be copied for it."""

    has_copied: bool = False

    def copy(self, x: Tensor) -> Tensor:
        self.has_copied = True
        return x.contiguous()

    def whole(self, x: Tensor) -> Tensor:
        return x if x.is_contiguous() else self.copy(x)

    def floats(self, x: Tensor) -> Tensor:
        return self.whole(x) if x.dtype == torch.float32 else self.copy(x.float())

    def heads(self, x: Tensor) -> Tensor:
        return x if has_dense_heads(x) else self.copy(x)

    def rows(self, x: Tensor) -> Tensor:
        """As a matrix whose rows are dense; a view wherever torch can give one."""
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if rows.data_ptr() != x.data_ptr():  # reshape has copied
            return self.copy(rows)
        return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else self.copy(rows)


class CpuKernels:
    """Each method prepares a call of the C++ kernel of its name."""

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
        dense = Dense()
        q, k, v = (dense.heads(x) for x in (q, k, v))
        reach = 0
        if bias is not None:
            reach = find_reach(bias, max(max_seqlen_q, max_seqlen_k))
            bias = dense.floats(bias)
        args = (
            *(q, q.stride(0), k, k.stride(0), v, v.stride(0), KINDS[q.dtype]),
            *(cu_seqlens_q, cu_seqlens_k, len(cu_seqlens_q) - 1, *q.shape[1:]),
            *(softmax_scale, causal, window, bias, reach, out, out.stride(0)),
        )
        return NativeCall(self.library.varlen_attention, args, not dense.has_copied)

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
        """Raises IndexError where there is no such layer. Run, the call computes and stores nothing if a slot, block,
        position or length is out of range."""
        dense = Dense()
        q, k, v = (dense.heads(x) for x in (q, k, v))
        num_layers, num_blocks, _, num_kv_heads, _ = kv_cache.shape
        if not 0 <= layer < num_layers:
            raise IndexError(f"there is no layer {layer} in a cache of {num_layers}")
        assert kv_cache.is_contiguous(), "The kernel knows the cache by its shape. This is a bug."
        slots, table = dense.whole(slot_mapping), dense.whole(block_table)
        rotary = None if rotary is None else dense.whole(rotary)
        positions = None if position_ids is None else dense.whole(position_ids)
        args = (
            *(q, q.stride(0), k, k.stride(0), v, v.stride(0), KINDS[q.dtype]),
            *(kv_cache[layer], CACHE_KINDS[kv_cache.dtype], num_blocks, slots, table, table.shape[1]),
            *(cu_seqlens, cache_seqlens, positions, rotary, *((0, 0) if rotary is None else rotary.shape)),
            *(q.shape[0], len(cache_seqlens), q.shape[1], num_kv_heads, q.shape[2]),
            *(softmax_scale, window, softcap, out, out.stride(0)),
        )
        wrong = "slots, blocks, positions or lengths are out of range"
        return NativeCall(self.library.paged_attention, args, not dense.has_copied, wrong)

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
        dense = Dense()
        x, residual = dense.rows(x), None if residual is None else dense.rows(residual)
        args = (
            *(*matrix(x), packed, x.shape[0], out_features, x.shape[1], bias, ACTIVATIONS.index(act)),
            *(*optional_matrix(residual), *matrix(flatten(out))),
        )
        kernel = self.library.linear_bf16 if packed.dtype == torch.bfloat16 else self.library.linear_act
        return NativeCall(kernel, args, not dense.has_copied)

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
        dense = Dense()
        x, residual = dense.rows(x), None if residual is None else dense.rows(residual)
        args = (
            *(*matrix(x), packed, x.shape[0], out_features, in_features, inverse_smooth, x_scale, x_zero),
            *(bias, ACTIVATIONS.index(act), *optional_matrix(residual), *matrix(out)),
            *(out_inverse_smooth, out_scale, out_zero),
        )
        return NativeCall(self.library.linear_int8, args, not dense.has_copied)

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
        dense, heads = Dense(), 1
        if x.dim() == 3 and has_dense_heads(x):
            heads = x.shape[1]
        else:
            x = dense.rows(x)
        residual = None if residual is None else dense.rows(residual)
        weight, bias = dense.floats(weight), None if bias is None else dense.floats(bias)
        shape = (x.numel() // x.shape[-1], x.shape[-1])
        args = (
            *(*matrix(x), heads, *optional_matrix(residual), *shape, weight, bias, eps, is_rms),
            *(*matrix(flatten(out)), out_inverse_smooth, out_scale, out_zero),
        )
        return NativeCall(self.library.add_norm, args, not dense.has_copied)

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
        dense = Dense()
        x = dense.rows(x)
        args = (
            *(*matrix(x), x.shape[0], x.shape[1] // 2, ACTIVATIONS.index(act), *matrix(out)),
            *(out_inverse_smooth, out_scale, out_zero),
        )
        return NativeCall(self.library.gated_act, args, not dense.has_copied)

    def embed_norm(
        self, tables: list[Tensor], indices: list[Tensor], weight: Tensor, bias: Tensor, eps: float, *, out: Tensor
    ) -> NativeCall:
        dense = Dense()
        indices, weight, bias = [dense.whole(index) for index in indices], dense.floats(weight), dense.floats(bias)
        args = (
            *(list_addresses(tables), list_addresses(indices), (ctypes.c_int64 * len(tables))(*map(len, tables))),
            *(len(tables), KINDS[tables[0].dtype], *out.shape, weight, bias, eps, *matrix(out)),
        )
        wrong, keeps = "ids or positions are out of their embedding's range", (*tables, *indices)
        return NativeCall(self.library.embed_norm, args, not dense.has_copied, wrong, keeps)

    def pool(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        mode: str,
        normalize: bool = False,
        num_prompt_tokens: Tensor | None = None,
        *,
        out: Tensor,
    ) -> NativeCall:
        dense = Dense()
        skipped = None if num_prompt_tokens is None else dense.whole(num_prompt_tokens)
        shape = (len(cu_seqlens) - 1, hidden_states.shape[1])
        args = (*matrix(hidden_states), cu_seqlens, *shape, POOLINGS.index(mode), normalize, skipped, out)
        return NativeCall(self.library.pool, args, not dense.has_copied)

    def round_channels(self, weight: Tensor, limits: tuple[float, ...], overflow_free: bool) -> tuple[Tensor, Tensor]:
        """`quantization.weights.RoundChannels`, computed at once."""
        num_channels, in_features = weight.shape
        places = torch.tensor(limits)
        values = torch.empty(num_channels, 4, round_up(in_features, 8) // 4, dtype=torch.int8)
        scale = torch.empty(num_channels)
        self.library.quantize_weight(
            *(weight.data_ptr(), num_channels, in_features, places.data_ptr(), len(limits), overflow_free),
            *(values.data_ptr(), scale.data_ptr()),
        )
        return values.transpose(0, 1), scale


def has_dense_heads(x: Tensor) -> bool:
    return x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1)


def flatten(out: Tensor) -> Tensor:
    """A place to write to, as a matrix."""
    return out if out.dim() == 2 else out.view(-1, out.shape[-1])


def list_addresses(tensors: list[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def optional_matrix(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    return NO_MATRIX if x is None else matrix(x)
