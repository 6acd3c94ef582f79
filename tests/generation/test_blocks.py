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


def test_without_prefix_cache_nothing_is_found_kept_or_hashed() -> None:
    allocator = BlockAllocator(4, has_prefix_cache=False)
    hashes: list[BlockHash] = []
    table = BlockTable()
    allocator.grow(table, 0, 32)
    allocator.publish(table, [1] * 32, 32, hashes)
    allocator.release(table)
    assert not allocator.kept
    assert allocator.find_prefix([1] * 33, hashes).block_ids == [] == hashes


def test_a_prefix_ends_where_its_first_block_is_gone() -> None:
    """Two sequences compute the same beginning at one time: the block that is found is the first one's, and may be
    taken for something else before what the second one goes on with."""
    allocator = BlockAllocator(5)
    tokens = list(range(32))
    one, other = BlockTable(), BlockTable()
    for table, num_tokens in ((one, 16), (other, 32)):
        allocator.grow(table, 0, num_tokens)
    for table, num_tokens in ((one, 16), (other, 32)):
        allocator.publish(table, tokens[:num_tokens], num_tokens, [])
    allocator.check()
    found = allocator.find_prefix([*tokens, 99], [])
    assert found.block_ids == [one.block_ids[0], other.block_ids[1]]
    for table in (found, one, other):
        allocator.release(table)
    fill(allocator, [7] * 40)
    assert allocator.find_prefix([*tokens, 99], []).block_ids == []


def test_only_what_is_computed_is_published() -> None:
    allocator = BlockAllocator(5)
    table, tokens, hashes = BlockTable(), list(range(40)), list[BlockHash]()
    allocator.grow(table, 0, 40)
    for num_final, num_found in ((15, 0), (31, 1), (32, 2)):
        allocator.publish(table, tokens, num_final, hashes)
        assert table.num_published == num_found == len(allocator.find_prefix(tokens, []).block_ids)
    assert allocator.fork(table).num_published == 2


def test_a_table_is_used_again_after_its_release() -> None:
    allocator = BlockAllocator(5)
    table = fill(allocator, [1] * 32)
    allocator.release(table)
    allocator.grow(table, 0, 16)
    allocator.publish(table, [2] * 16, 16, [])
    assert allocator.find_prefix([2] * 17, []).block_ids == table.block_ids


def test_only_the_blocks_that_are_written_to_are_copied() -> None:
    allocator = BlockAllocator(8)
    table = fill(allocator, list(range(48)))
    copy = allocator.fork(table)
    shared = list(table.block_ids)
    assert allocator.count_needed(copy, 17, 20) == 1
    assert allocator.grow(copy, 17, 20) == [(shared[1], copy.block_ids[1])]
    assert (copy.block_ids[0], copy.block_ids[2]) == (shared[0], shared[2])
