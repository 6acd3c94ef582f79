"""The compiled kernels under the signatures of their ops: the op's arguments, and `out`."""

import ctypes

import torch
from torch import Tensor

from runtime.kernels.cpu.library import ACTIVATIONS, CACHE_KINDS, KINDS, NO_MATRIX, POOLINGS, CpuLibrary, matrix
from runtime.ops.varlen_attention import find_reach


class CpuKernels:
    """Each method runs the C++ kernel of its name. What is not dense in its last dimension is copied first.

    Copies are bound to a name before their address is taken: that keeps them until the kernel has returned.
    """

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
    ) -> None:
        q, k, v = (x if has_dense_heads(x) else x.contiguous() for x in (q, k, v))
        num_heads, head_dim = q.shape[1:]
        reach = 0
        if bias is not None:
            bias = bias.float().contiguous()
            reach = find_reach(bias, max(max_seqlen_q, max_seqlen_k))
        self.library.varlen_attention(
            *(q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0), KINDS[q.dtype]),
            *(cu_seqlens_q.data_ptr(), cu_seqlens_k.data_ptr(), len(cu_seqlens_q) - 1, num_heads, head_dim),
            *(softmax_scale, causal, window, pointer(bias), reach, out.data_ptr(), out.stride(0)),
        )

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
    ) -> None:
        """Raises IndexError where a slot, block, position or length is out of range; nothing is computed then."""
        q, k, v = (x if has_dense_heads(x) else x.contiguous() for x in (q, k, v))
        num_layers, num_blocks, _, num_kv_heads, _ = kv_cache.shape
        if not 0 <= layer < num_layers:
            raise IndexError(f"there is no layer {layer} in a cache of {num_layers}")
        assert kv_cache.is_contiguous(), "The kernel knows the cache by its shape. This is a bug."
        slots, table = slot_mapping.contiguous(), block_table.contiguous()
        rotary = None if rotary is None else rotary.contiguous()
        positions = None if position_ids is None else position_ids.contiguous()
        cache = kv_cache.data_ptr() + layer * kv_cache.stride(0) * kv_cache.itemsize
        num_wrong = self.library.paged_attention(
            *(q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0), KINDS[q.dtype]),
            *(cache, CACHE_KINDS[kv_cache.dtype], num_blocks, slots.data_ptr(), table.data_ptr(), table.shape[1]),
            *(cu_seqlens.data_ptr(), cache_seqlens.data_ptr(), pointer(positions), pointer(rotary)),
            *((0, 0) if rotary is None else rotary.shape),
            *(q.shape[0], len(cache_seqlens), q.shape[1], num_kv_heads, q.shape[2]),
            *(softmax_scale, window, softcap, out.data_ptr(), out.stride(0)),
        )
        if num_wrong:
            raise IndexError(f"{num_wrong} of the batch's slots, blocks, positions or lengths are out of range")

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
    ) -> None:
        x, residual = to_rows(x), None if residual is None else to_rows(residual)
        shape = (x.shape[0], out_features, x.shape[1])
        self.library.linear_act(
            *(*matrix(x), packed.data_ptr(), *shape, pointer(bias), ACTIVATIONS.index(act)),
            *(*optional_matrix(residual), *matrix(to_rows(out))),
        )

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
    ) -> None:
        x, residual = to_rows(x), None if residual is None else to_rows(residual)
        shape = (x.shape[0], out_features, in_features)
        self.library.linear_int8(
            *(*matrix(x), packed.data_ptr(), *shape, pointer(inverse_smooth), x_scale, x_zero),
            *(pointer(bias), ACTIVATIONS.index(act), *optional_matrix(residual), *matrix(out)),
            *(pointer(out_inverse_smooth), out_scale, out_zero),
        )

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
    ) -> None:
        heads = 1
        if x.dim() == 3 and has_dense_heads(x):
            heads = x.shape[1]
        else:
            x = to_rows(x)
        residual = None if residual is None else to_rows(residual)
        weight, bias = weight.float(), None if bias is None else bias.float()
        shape = (x.numel() // x.shape[-1], x.shape[-1])
        self.library.add_norm(
            *(*matrix(x), heads, *optional_matrix(residual), *shape, weight.data_ptr(), pointer(bias), eps, is_rms),
            *(*matrix(to_rows(out)), pointer(out_inverse_smooth), out_scale, out_zero),
        )

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
    ) -> None:
        weight = torch.ones(normalized_shape) if weight is None else weight
        self.add_norm(x, None, weight, bias, eps, out=out)

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
    ) -> None:
        x = to_rows(x)
        self.library.gated_act(
            *(*matrix(x), x.shape[0], x.shape[1] // 2, ACTIVATIONS.index(act), *matrix(out)),
            *(pointer(out_inverse_smooth), out_scale, out_zero),
        )

    def embed_norm(
        self, tables: list[Tensor], indices: list[Tensor], weight: Tensor, bias: Tensor, eps: float, *, out: Tensor
    ) -> None:
        indices, weight, bias = [index.contiguous() for index in indices], weight.float(), bias.float()
        num_wrong = self.library.embed_norm(
            pointers(tables),
            pointers(indices),
            (ctypes.c_int64 * len(tables))(*(len(table) for table in tables)),
            *(len(tables), KINDS[tables[0].dtype], *out.shape, weight.data_ptr(), bias.data_ptr(), eps, *matrix(out)),
        )
        if num_wrong:
            raise IndexError(f"{num_wrong} of the batch's ids or positions are out of their embedding's range")

    def pool(
        self, hidden_states: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool = False, *, out: Tensor
    ) -> None:
        shape = (len(cu_seqlens) - 1, hidden_states.shape[1])
        self.library.pool(
            *(*matrix(hidden_states), cu_seqlens.data_ptr(), *shape, POOLINGS.index(mode), normalize, out.data_ptr())
        )


def has_dense_heads(x: Tensor) -> bool:
    return x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1)


def to_rows(x: Tensor) -> Tensor:
    """As a matrix whose rows are dense; a view wherever torch can give one."""
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def pointers(tensors: list[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def optional_matrix(x: Tensor | None) -> tuple[int | None, int, int]:
    return NO_MATRIX if x is None else matrix(x)
