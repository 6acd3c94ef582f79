"""How kernels are cut: each program of a launch computes one tile."""

from dataclasses import dataclass, replace

import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows`: tokens, queries or rows of a result that one program computes; `columns`: keys, or columns, that it takes
    at a time, 0 where it takes all. `max_registers`: of a thread; None leaves them to ptxas, which may take fewer, for
    more programs at once, and spill a little."""

    rows: int
    columns: int = 0
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None

    def cut(self, num_rows: int) -> "Tile":
        """Of no more rows than that takes. What a row's result is does not depend on how many there are."""
        rows = min(self.rows, round_power(num_rows, 16))
        return replace(self, rows=rows, num_warps=self.num_warps if 2 * rows >= self.rows else min(self.num_warps, 4))


def round_power(number: int, least: int = 1) -> int:
    """The next power of two, as Triton's blocks have to be; matrix instructions want 16."""
    return max(int(triton.next_power_of_2(number)), least)


def count_tiles(num_tokens: int, num_seqs: int, rows: int) -> int:
    """At most so many tiles do packed sequences have, whatever their lengths, which a launcher does not know."""
    return num_tokens // rows + num_seqs


@triton.jit
def find_sequence(cu_seqlens, tile, num_seqs, num_steps, ROWS: tl.constexpr):
    """The sequence of a tile, and its first row there. Tiles from cu_seqlens[s] // ROWS + s on belong to sequence s: at
    least as many as it needs, whatever lies before it. Those too many begin behind its last row. `num_steps`: the bits
    of num_seqs."""
    low = tile * 0
    high = low + num_seqs - 1
    for _ in range(num_steps):
        middle = (low + high + 1) // 2
        begins = tl.load(cu_seqlens + middle) // ROWS + middle
        low = tl.where(begins <= tile, middle, low)
        high = tl.where(begins <= tile, high, middle - 1)
    first = (tile - tl.load(cu_seqlens + low) // ROWS - low) * ROWS
    return low, first


@triton.jit
def load_rows(pointers, dims, is_there, NUM_DIMS: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """[rows, BLOCK_DIM] of rows that begin at `pointers` [rows, 1]; zeros where nothing is there."""
    if NUM_DIMS != BLOCK_DIM:
        is_there = is_there & (dims < NUM_DIMS)
    return tl.load(pointers + dims, mask=is_there, other=0.0)
