"""The block allocator under random traffic: nothing is lost, nothing given twice, nothing written that others read."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kv_cache.blocks import (
    BLOCK_SIZE,
    SCRATCH_BLOCK,
    BlockAllocator,
    BlockHash,
    BlockTable,
    OutOfBlocks,
    extend_hashes,
)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 30), st.integers(2, 30), st.booleans())
def test_random_traffic_keeps_the_books(seed: int, num_blocks: int, has_cache: bool) -> None:
    """Grow, fork, publish, look up, release in any order. A model of the contents: which tokens each block holds."""
    rng = random.Random(seed)
    allocator = BlockAllocator(num_blocks, has_prefix_cache=has_cache)
    contents: dict[int, list[int]] = {}
    sequences: list[tuple[BlockTable, list[int], list[BlockHash]]] = []
    for _ in range(120):
        act = rng.choice(["new", "grow", "grow", "fork", "give up", "release"])
        if act == "new":
            tokens = [rng.randint(0, 1) for _ in range(rng.choice([16, 17, 40]))]
            hashes: list[BlockHash] = []
            table = allocator.find_prefix(tokens, hashes)
            check_contents(table, tokens, contents)
            # What it goes on with may be something else than what was looked for.
            sequences.append((table, tokens[: table.num_slots], hashes[: len(table.block_ids)]))
        elif sequences and act == "grow":
            more = [rng.randint(0, 1) for _ in range(rng.randint(1, 20))]
            write(allocator, *rng.choice(sequences), more, contents)
        elif sequences and act == "fork":
            table, tokens, hashes = rng.choice(sequences)
            sequences.append((allocator.fork(table), list(tokens), list(hashes)))
        elif sequences and act == "give up":
            place = rng.randrange(len(sequences))
            table, tokens, hashes = sequences[place]
            allocator.release(table)
            if tokens:
                again = allocator.find_prefix(tokens, hashes)
                sequences[place] = (again, tokens[: again.num_slots], hashes[: len(again.block_ids)])
        elif sequences:
            table, *_ = sequences.pop(rng.randrange(len(sequences)))
            allocator.release(table)
            assert table.block_ids == []
        allocator.check()
        for table, tokens, _ in sequences:
            check_contents(table, tokens, contents)
    for table, *_ in sequences:
        allocator.release(table)
    allocator.check()
    assert allocator.num_free_blocks == num_blocks - 1


def write(
    allocator: BlockAllocator,
    table: BlockTable,
    tokens: list[int],
    hashes: list[BlockHash],
    more: list[int],
    contents: dict[int, list[int]],
) -> None:
    before = (list(table.block_ids), allocator.num_free_blocks)
    try:
        copies = allocator.grow(table, len(tokens), len(tokens) + len(more))
    except OutOfBlocks:
        assert (table.block_ids, allocator.num_free_blocks) == before
        return
    for source, target in copies:
        contents[target] = list(contents[source])
    for token in more:
        block = table.block_ids[len(tokens) // BLOCK_SIZE]
        assert block != SCRATCH_BLOCK and allocator.ref_counts[block] == 1
        contents[block] = [*contents.get(block, [])[: len(tokens) % BLOCK_SIZE], token]
        tokens.append(token)
    allocator.publish(table, tokens, len(tokens), hashes)


def check_contents(table: BlockTable, tokens: list[int], contents: dict[int, list[int]]) -> None:
    found = [token for block in table.block_ids for token in contents.get(block, [])]
    assert found[: len(tokens)] == tokens[: len(found)] and len(found) >= min(len(tokens), table.num_slots)


def fill(allocator: BlockAllocator, tokens: list[int]) -> BlockTable:
    table = allocator.find_prefix(tokens, [])
    allocator.grow(table, table.num_slots, len(tokens))
    allocator.publish(table, tokens, len(tokens), [])
    return table


def test_prefix_outlives_its_owner_until_blocks_are_needed() -> None:
    allocator = BlockAllocator(5)
    tokens = list(range(48))
    allocator.release(fill(allocator, tokens))
    found = allocator.find_prefix([*tokens, 99], [])
    assert len(found.block_ids) == 3 and found.num_published == 3
    allocator.release(found)
    allocator.release(fill(allocator, list(range(100, 164))))
    assert allocator.find_prefix([*tokens, 99], []).block_ids == []


def test_end_of_a_prefix_is_given_up_before_its_beginning() -> None:
    allocator = BlockAllocator(4)
    tokens = list(range(48))
    allocator.release(fill(allocator, tokens))
    allocator.release(fill(allocator, [7] * 10))
    assert len(allocator.find_prefix([*tokens, 99], []).block_ids) == 2


def test_least_recently_used_goes_first() -> None:
    allocator = BlockAllocator(3)
    for start in (0, 100):
        allocator.release(fill(allocator, list(range(start, start + 16))))
    allocator.release(allocator.find_prefix([*range(16), 1], []))
    allocator.release(fill(allocator, [5] * 3))
    assert allocator.find_prefix([*range(16), 1], []).block_ids
    assert not allocator.find_prefix([*range(100, 116), 1], []).block_ids


def test_at_least_one_token_is_left_to_compute() -> None:
    allocator = BlockAllocator(5)
    allocator.release(fill(allocator, list(range(32))))
    assert len(allocator.find_prefix(list(range(32)), []).block_ids) == 1


def test_same_block_behind_another_past_is_another_block() -> None:
    one: list[bytes] = []
    other: list[bytes] = []
    extend_hashes(one, [1] * 16 + [2] * 16, 2, "")
    extend_hashes(other, [3] * 16 + [2] * 16, 2, "")
    assert one[1] != other[1]


def test_hashes_are_the_same_however_they_grow() -> None:
    tokens, at_once, bit_by_bit = list(range(70)), list[bytes](), list[bytes]()
    extend_hashes(at_once, tokens, 4, "")
    for count in (1, 1, 3, 4):
        extend_hashes(bit_by_bit, tokens[: count * BLOCK_SIZE + 5], count, "")
    assert at_once == bit_by_bit
    assert len(set(at_once)) == 4


def test_double_release_is_caught() -> None:
    allocator = BlockAllocator(4)
    table = fill(allocator, [1] * 20)
    copy = BlockTable(list(table.block_ids))
    allocator.release(table)
    with pytest.raises(AssertionError, match="released twice"):
        allocator.release(copy)


def test_without_prefix_cache_nothing_is_found() -> None:
    allocator = BlockAllocator(4, has_prefix_cache=False)
    allocator.release(fill(allocator, [1] * 32))
    assert allocator.find_prefix([1] * 33, []).block_ids == []
