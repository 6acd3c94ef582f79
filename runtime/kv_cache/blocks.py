"""Who owns which block of the KV cache. Pure Python: it knows numbers of blocks, not their memory.

A block holds the keys and values of BLOCK_SIZE tokens in all layers. Sequences hold blocks through their tables; one
block may be in several tables (a common prompt, beams of one request) and is counted. What only one sequence holds it
may write to; what is shared is copied first (copy-on-write).

A full block whose tokens are final can be published under the hash of its tokens and all those before it. Later
sequences that begin alike find it there, also after its owner is gone: a free block keeps its content, and is taken for
something else only when no other block is left, the one unused for longest first (Kwon et al., 2023; vLLM).
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_SIZE = 16
"""Tokens of a block; also the columns of a panel in `backends/cpu/kernels/gemm.h`."""
SCRATCH_BLOCK = 0
"""Belongs to nobody: tables are filled up with it, and canaries write to it."""

BlockHash = bytes


class OutOfBlocks(RuntimeError):
    """No block is free."""


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, in order. Mutable: belongs to one sequence, changed by the allocator alone."""

    block_ids: list[int] = field(default_factory=list)
    num_published: int = 0
    """Of these, how many from the start on others can find."""

    @property
    def num_slots(self) -> int:
        return len(self.block_ids) * BLOCK_SIZE


class BlockAllocator:
    """Mutable: everything. `num_blocks` counts the scratch block, which is never given out."""

    def __init__(self, num_blocks: int, *, has_prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks - 1
        self.has_prefix_cache = has_prefix_cache
        self.ref_counts = [0] * num_blocks
        self.empty = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))
        """Free, with nothing in them worth keeping; taken from the end."""
        self.kept: OrderedDict[int, None] = OrderedDict()
        """Free, but published; the one unused for longest first."""
        self.hashes: dict[int, BlockHash] = {}
        self.found: dict[BlockHash, int] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self.empty) + len(self.kept)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - self.num_free_blocks

    def count_needed(self, table: BlockTable, first: int, last: int) -> int:
        """Blocks that `grow` with the same arguments would take."""
        new = max(0, count_blocks(last) - len(table.block_ids))
        return new + len(self.list_shared(table, first, last))

    def grow(self, table: BlockTable, first: int, last: int) -> list[tuple[int, int]]:
        """Make tokens [first, last) writable. Returns (from, to) of blocks to copy. Raises OutOfBlocks, and then has
        changed nothing."""
        if self.count_needed(table, first, last) > self.num_free_blocks:
            raise OutOfBlocks
        copies = []
        for place in self.list_shared(table, first, last):
            shared = table.block_ids[place]
            table.block_ids[place] = self.take()
            self.ref_counts[shared] -= 1
            copies.append((shared, table.block_ids[place]))
        while table.num_slots < last:
            table.block_ids.append(self.take())
        return copies

    def list_shared(self, table: BlockTable, first: int, last: int) -> list[int]:
        """Places of the table that a write to tokens [first, last) touches and that others hold too."""
        places = range(first // BLOCK_SIZE, min(count_blocks(last), len(table.block_ids)))
        return [place for place in places if self.ref_counts[table.block_ids[place]] > 1]

    def take(self) -> int:
        """A block for one owner. Raises OutOfBlocks."""
        if self.empty:
            block = self.empty.pop()
        elif self.kept:
            block = self.kept.popitem(last=False)[0]
            del self.found[self.hashes.pop(block)]
        else:
            raise OutOfBlocks
        self.ref_counts[block] = 1
        return block

    def fork(self, table: BlockTable) -> BlockTable:
        """A second table over the same blocks."""
        for block in table.block_ids:
            self.ref_counts[block] += 1
        return BlockTable(list(table.block_ids), table.num_published)

    def release(self, table: BlockTable) -> None:
        """Give up all blocks; the last ones first, because a prefix is of use without its end but not the reverse."""
        for block in reversed(table.block_ids):
            self.ref_counts[block] -= 1
            assert self.ref_counts[block] >= 0, "A block was released twice. This is a bug."
            if self.ref_counts[block] == 0:
                if block in self.hashes:
                    self.kept[block] = None
                else:
                    self.empty.append(block)
        table.block_ids, table.num_published = [], 0

    def count_freed(self, tables: Sequence[BlockTable]) -> int:
        """Blocks that would be free if all of these were released."""
        held = Counter(block for table in tables for block in table.block_ids)
        return sum(self.ref_counts[block] == count for block, count in held.items())

    def find_prefix(self, token_ids: Sequence[int], hashes: list[BlockHash], salt: str = "") -> BlockTable:
        """A table over the published blocks that hold the beginning of `token_ids`; at least one token is left over,
        because something has to be computed to go on from. `hashes`: the sequence's own, extended as far as needed.
        Only blocks that were published under the same `salt` are found."""
        table = BlockTable()
        if not self.has_prefix_cache:
            return table
        for place in range((len(token_ids) - 1) // BLOCK_SIZE):
            extend_hashes(hashes, token_ids, place + 1, salt)
            block = self.found.get(hashes[place])
            if block is None:
                break
            self.hold(block)
            table.block_ids.append(block)
        table.num_published = len(table.block_ids)
        return table

    def hold(self, block: int) -> None:
        """One owner more of a published block."""
        if self.ref_counts[block] == 0:
            del self.kept[block]
        self.ref_counts[block] += 1

    def find_whole(self, hashes: Sequence[BlockHash]) -> BlockTable:
        """A table over the blocks that were published under these hashes; empty where one of them is missing, for what
        is of no use in part."""
        blocks = [self.found[each] for each in hashes if each in self.found]
        if len(blocks) < len(hashes):
            return BlockTable()
        for block in blocks:
            self.hold(block)
        return BlockTable(blocks, len(blocks))

    def publish_whole(self, table: BlockTable, hashes: Sequence[BlockHash]) -> None:
        """Let others find all blocks of a table, the last one too, though it may not be full."""
        for block, each in zip(table.block_ids, hashes, strict=True):
            known = self.found.get(each)
            # What is left of another table, of which a part is gone.
            if known is not None and self.ref_counts[known] == 0:
                del self.kept[known], self.hashes[known], self.found[each]
                self.empty.append(known)
            if each not in self.found and block not in self.hashes:
                self.found[each], self.hashes[block] = block, each
        table.num_published = len(table.block_ids)

    def publish(
        self, table: BlockTable, token_ids: Sequence[int], num_final: int, hashes: list[BlockHash], salt: str = ""
    ) -> None:
        """Let others find the full blocks of the first `num_final` tokens, whose keys and values are computed.

        `hashes`, `salt`: as in `find_prefix`.
        """
        num_full = num_final // BLOCK_SIZE
        if not self.has_prefix_cache or num_full <= table.num_published:
            return
        extend_hashes(hashes, token_ids, num_full, salt)
        for place in range(table.num_published, num_full):
            # The same tokens computed twice at one time: the first one stays the one that is found.
            if hashes[place] not in self.found:
                block = table.block_ids[place]
                self.found[hashes[place]], self.hashes[block] = block, hashes[place]
        table.num_published = num_full

    def check(self) -> None:
        """Every block is free or used, and never both. Raises AssertionError."""
        free = [*self.empty, *self.kept]
        assert len(set(free)) == len(free), "A block is free twice."
        assert all(self.ref_counts[block] == 0 for block in free), "A free block has an owner."
        num_used = sum(count > 0 for count in self.ref_counts)
        assert num_used + len(free) == self.num_blocks, "A block is neither free nor used."
        assert {block: found for found, block in self.found.items()} == self.hashes, "A hash leads elsewhere."


def count_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def extend_hashes(hashes: list[BlockHash], token_ids: Sequence[int], num_blocks: int, salt: str) -> None:
    """Add what is missing of the hashes of the first `num_blocks` blocks: each over its tokens and the hash before it,
    so that two are equal only where all of the past is, and the salt. What is known of a sequence stays true: tokens
    are only added.

    128 bits of BLAKE2: two different prompts meet by chance never, and by intent not in practice.
    """
    assert num_blocks * BLOCK_SIZE <= len(token_ids), "Only full blocks have hashes. This is a bug."
    for start in range(len(hashes) * BLOCK_SIZE, num_blocks * BLOCK_SIZE, BLOCK_SIZE):
        tokens = array("q", token_ids[start : start + BLOCK_SIZE]).tobytes()
        hashes.append(hashlib.blake2b((hashes[-1] if hashes else salt.encode()) + tokens, digest_size=16).digest())
