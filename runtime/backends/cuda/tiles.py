"""How kernels are cut: a program of a launch computes one tile."""

from dataclasses import dataclass

import triton


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows`: tokens, queries or rows of a result that one program computes; `columns`: keys, or columns, that it takes
    at a time, 0 where it takes all."""

    rows: int
    columns: int = 0
    num_warps: int = 4
    num_stages: int = 2


def round_power(number: int, least: int = 1) -> int:
    """The next power of two, as Triton's blocks have to be; matrix instructions want 16."""
    return max(int(triton.next_power_of_2(number)), least)
