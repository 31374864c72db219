"""The KV pool as a set of numbered blocks: who holds them, which can be taken back, and from whom first.

Every block is in exactly one of three states, so `free + cached + referenced == total` always holds:

    free ----allocate----> referenced ----last release, contents worth keeping----> cached
      ^                     |      ^                                                  |
      +----last release-----+      +------------------share (prefix hit)--------------+
      ^                                                                               |
      +---------------- evicted, and given out again by the next allocate ------------+
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens with reference counts. Every operation is O(1) amortised.

    Cached blocks always yield to requests that run: memory is for running first. *Whose* cached block goes
    is decided by fairness: the tenant that holds most blocks (referenced and cached together) loses its least
    recently used one. A tenant is therefore evicted only while it holds at least as much as every other
    tenant with cached blocks: a storm of distinct prompts eats its own cache first, not its neighbours'.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least one block of one token, not {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.ref_counts = [0] * num_blocks
        #: Called with the id of a cached block just before it is given to somebody else.
        self.on_evict: Callable[[int], None] = lambda block: None
        self._free = list(range(num_blocks - 1, -1, -1))
        self._owners = [""] * num_blocks  # the tenant that took the block from the free list or the cache
        self._cached: dict[str, OrderedDict[int, None]] = {}  # per tenant, least recently used first
        self._num_cached = 0
        self._holdings: dict[str, int] = {}  # blocks per tenant, referenced or cached
        self._heap: list[tuple[int, str]] = []  # (-holding, tenant); may hold outdated entries
        self._changed: set[str] = set()  # tenants whose current entry is not in the heap yet

    @property
    def num_free(self) -> int:
        """Blocks with no contents worth keeping."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody references, kept for prefix hits until someone needs the memory."""
        return self._num_cached

    @property
    def num_referenced(self) -> int:
        """Blocks in at least one request's block table."""
        return self.num_blocks - len(self._free) - self._num_cached

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give out: free ones, then cached ones."""
        return len(self._free) + self._num_cached

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, tenant: str) -> int:
        """Return a block with one reference; its contents are undefined. IndexError when `num_available` is 0."""
        block = self._free.pop() if self._free else self._evict()
        self.ref_counts[block] = 1
        self._give(block, tenant)
        return block

    def allocate_many(self, count: int, tenant: str) -> list[int]:
        """Return what `count` calls of `allocate` would, in the same order; quicker where all are free."""
        free = self._free
        if not 0 < count <= len(free):
            return [self.allocate(tenant) for _ in range(count)]
        blocks = free[: -count - 1 : -1]
        del free[-count:]
        for block in blocks:
            self.ref_counts[block] = 1
            self._owners[block] = tenant
        self._holdings[tenant] = self._holdings.get(tenant, 0) + count
        self._changed.add(tenant)
        return blocks

    def share(self, block: int, tenant: str) -> None:
        """Add a reference to a block that is referenced or cached."""
        if self.ref_counts[block] == 0:
            self._take_from_cache(block)
            self._take(block)
            self._give(block, tenant)
        self.ref_counts[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """Drop a reference. Without any, the block is cached if `keep` (it can serve prefix hits), else free."""
        count = self.ref_counts[block] - 1
        if count < 0:
            raise ValueError(f"block {block} was released more often than it was taken")
        self.ref_counts[block] = count
        if count:
            return
        if keep:
            tenant = self._owners[block]
            self._cached.setdefault(tenant, OrderedDict())[block] = None
            self._num_cached += 1
            self._changed.add(tenant)
        else:
            self._take(block)
            self._free.append(block)

    def free_all(self, blocks: Iterable[int]) -> None:
        """Release each of the blocks in their order, with nothing to keep."""
        counts, owners, freed = self.ref_counts, self._owners, self._free
        returned: dict[str, int] = {}
        for block in blocks:
            count = counts[block] - 1
            if count < 0:
                raise ValueError(f"block {block} was released more often than it was taken")
            counts[block] = count
            if not count:
                freed.append(block)
                returned[owners[block]] = returned.get(owners[block], 0) + 1
        for tenant, count in returned.items():
            self._hold_less(tenant, count)

    def owner(self, block: int) -> str:
        """The tenant to which a block that is not free is charged."""
        return self._owners[block]

    def referenced_of(self, tenant: str) -> int:
        """How many blocks in block tables are charged to `tenant`."""
        return self._holdings.get(tenant, 0) - self.cached_of(tenant)

    def cached_of(self, tenant: str) -> int:
        """How many cached blocks are charged to `tenant`."""
        return len(self._cached.get(tenant, ()))

    # -- whose blocks they are -------------------------------------------------------------------------

    def _give(self, block: int, tenant: str) -> None:
        self._owners[block] = tenant
        self._holdings[tenant] = self._holdings.get(tenant, 0) + 1
        self._changed.add(tenant)

    def _take(self, block: int) -> None:
        self._hold_less(self._owners[block], 1)

    def _hold_less(self, tenant: str, count: int) -> None:
        left = self._holdings[tenant] - count
        if left:
            self._holdings[tenant] = left
            self._changed.add(tenant)
        else:
            del self._holdings[tenant]
            self._changed.discard(tenant)

    def _take_from_cache(self, block: int) -> None:
        tenant = self._owners[block]
        blocks = self._cached[tenant]
        del blocks[block]
        self._num_cached -= 1
        if not blocks:
            del self._cached[tenant]

    def _evict(self) -> int:
        if not self._cached:
            raise IndexError("the KV pool has no block left to give out")
        block = next(iter(self._cached[self._largest_holder()]))
        self.on_evict(block)
        self._take_from_cache(block)
        self._take(block)
        return block

    def _largest_holder(self) -> str:
        """Return the tenant with the most cached blocks. Only this brings the heap up to date."""
        if len(self._cached) == 1:
            return next(iter(self._cached))
        if len(self._heap) > 4 * len(self._cached) + 64:
            self._heap = [(-self._holdings[tenant], tenant) for tenant in self._cached]
            heapify(self._heap)
        else:
            for tenant in self._changed:
                if tenant in self._cached:
                    heappush(self._heap, (-self._holdings[tenant], tenant))
        self._changed.clear()
        while True:
            size, tenant = self._heap[0]
            if tenant in self._cached and self._holdings[tenant] == -size:
                return tenant
            heappop(self._heap)

    # -- integrity -------------------------------------------------------------------------------------

    def check_integrity(self, references: Mapping[int, int] | None = None) -> None:
        """Raise AssertionError unless every block is in one state and all counts agree.

        `references` maps block ids to how often the callers' block tables name them.
        """
        free = set(self._free)
        cached = {block: tenant for tenant, blocks in self._cached.items() for block in blocks}
        _ensure(len(free) == len(self._free), "a block is in the free list twice")
        _ensure(len(cached) == self._num_cached, "the count of cached blocks is wrong")
        _ensure(not free & cached.keys(), "a block is both free and cached")
        holdings: dict[str, int] = {}
        for block, count in enumerate(self.ref_counts):
            idle = block in free or block in cached
            _ensure(count >= 0 and (count == 0) == idle, f"block {block} has {count} references")
            if block not in free:
                holdings[self._owners[block]] = holdings.get(self._owners[block], 0) + 1
            if references is not None:
                named = references.get(block, 0)
                _ensure(named == count, f"block {block}: {count} references, {named} in block tables")
        for block, tenant in cached.items():
            _ensure(self._owners[block] == tenant, f"block {block} is cached for the wrong tenant")
        _ensure(holdings == self._holdings, "the blocks per tenant are miscounted")


def _ensure(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
