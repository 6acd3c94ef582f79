"""Random graphs for the planner and the arena: each op makes one tensor out of a few earlier ones."""

from itertools import combinations

from hypothesis import strategies as st

from runtime.memory.lifetimes import Lifetime, align_up


@st.composite
def lifetimes(draw: st.DrawFn, max_ops: int = 40) -> list[Lifetime]:
    """A tensor lives from its op to the last op that reads it. How far back ops reach is drawn too: layers or a web.
    Some ops give nothing, as they are there for what they change; the first is none of those."""
    num_ops = draw(st.integers(1, max_ops))
    reach = draw(st.sampled_from([2, 4, 8, max_ops]))
    ends = list(range(num_ops))
    for op in range(1, num_ops):
        for back in draw(st.lists(st.integers(1, min(op, reach)), max_size=3)):
            ends[op - back] = op
    size = st.integers(1, 50_000)
    sizes = [draw(size), *draw(st.lists(st.just(0) | size, min_size=num_ops - 1, max_size=num_ops - 1))]
    return [Lifetime(op, end, align_up(size)) for op, (end, size) in enumerate(zip(ends, sizes, strict=True))]


def check_disjoint(lives: list[Lifetime], places: list[tuple[int, int]]) -> None:
    """No two tensors share a byte while both live. `places`: (chunk, offset) by tensor."""
    together = list(zip(lives, places, strict=True))
    for (life, (chunk, offset)), (other, (other_chunk, other_offset)) in combinations(together, 2):
        shares_space = offset < other_offset + other.num_bytes and other_offset < offset + life.num_bytes
        assert not (chunk == other_chunk and life.overlaps(other) and shares_space), (life, offset, other, other_offset)
