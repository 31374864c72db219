"""Block tables: which blocks hold each request's tokens. Prefix hits, forks, copies, growth, return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import Digest, PrefixCache
from weighbridge.engine.request import Request
from weighbridge.models.files.config import NO_STATE


@dataclass(slots=True)
class Opening:
    """How a request would start: blocks it shares, tokens they cover, and what it takes from the pool."""

    shared: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys and values are already there
    fresh: int = 0  # blocks to allocate for the rest of its tokens
    needed: int = 0  # blocks of `num_available` that it uses up: fresh ones, revived hits, a copy on write


class BlockTables:
    """Gives requests their blocks. The only writer of `Request.block_table`.

    With `prefix` None nothing is shared except between forks.
    """

    def __init__(self, pool: BlockPool, prefix: PrefixCache | None, state_slots: int = 0) -> None:
        """`state_slots`: so many requests at once have a place for their states too; 0: the model keeps none."""
        self.pool = pool
        self._keeps_states = state_slots > 0
        self._state_slots = list(range(state_slots))  # those that are nobody's
        self._prefix = prefix
        self._size = pool.block_size
        self._chains: dict[Request, list[Digest]] = {}  # digests of the full blocks of each request's tokens
        self._entered: dict[Request, int] = {}  # how many leading blocks were offered to the prefix cache
        if prefix is not None:
            pool.on_evict = prefix.evict

    # -- starting --------------------------------------------------------------------------------------

    def opening(self, request: Request) -> Opening:
        """What `request` would share and need if it were admitted now: room for all its present tokens.

        Prefix hits never cover the last token: it is computed again for its logits.
        """
        hits = self._hits(request)
        fresh = self.pool.blocks_for(request.num_tokens) - len(hits)
        revived = sum(self.pool.ref_counts[block] == 0 for block in hits)
        return Opening(hits, len(hits) * self._size, fresh, fresh + revived)

    def opening_of_fork(self, request: Request, parent: Request) -> Opening:
        """As `opening`, sharing all of the parent's prompt blocks, the partly filled last one included.

        The last prompt token runs again, into a block that is shared: one block is needed for its copy.
        """
        shared = parent.block_table[: self.pool.blocks_for(request.num_prompt_tokens)]
        return Opening(shared, request.num_prompt_tokens - 1, 0, 1)

    def open(self, request: Request, opening: Opening) -> None:
        """Carry out `opening`. Hits are shared first, so that allocating cannot evict them."""
        for block in opening.shared:
            self.pool.share(block, request.tenant)
        fresh = self.pool.allocate_many(opening.fresh, request.tenant)
        request.block_table = opening.shared + fresh
        request.num_computed_tokens = opening.computed
        if self._keeps_states:
            request.state_slot = self._state_slots.pop()
        self._entered[request] = opening.computed // self._size

    def _hits(self, request: Request) -> list[int]:
        if self._prefix is None:
            return []
        return self._prefix.longest(self._chain(request), self._adoptable(request))

    def _adoptable(self, request: Request) -> int:
        """Blocks that `request` may take from others: all before its last token, which is computed again for its
        logits; of a prompt that is scored those alone of which that is done."""
        last = len(request.scores) if request.is_scoring else request.num_tokens - 1
        return last // self._size

    def _chain(self, request: Request) -> list[Digest]:
        """Digests of the request's full blocks; each block is hashed once in the request's life."""
        chain = self._chains.setdefault(request, [])
        if self._prefix is not None and len(chain) < request.num_tokens // self._size:
            self._prefix.extend(chain, request.tokens, request.num_tokens, request.salt)
        return chain

    # -- running ---------------------------------------------------------------------------------------

    def writable(self, request: Request, position: int) -> bool:
        """Whether the token at `position` can be written without taking a block."""
        index = position // self._size
        table = request.block_table
        return index < len(table) and self.pool.ref_counts[table[index]] == 1

    def blocks_to_write(self, request: Request, end: int) -> int:
        """Blocks it takes to write [num_computed_tokens, end): for growth, and for copies of shared blocks."""
        table, counts = request.block_table, self.pool.ref_counts
        first, last = request.num_computed_tokens // self._size, self.pool.blocks_for(end)
        return max(last - len(table), 0) + sum(counts[block] > 1 for block in table[first:last])

    def prepare_write(self, request: Request, end: int) -> list[tuple[int, int]]:
        """Make [num_computed_tokens, end) writable; returns the (source, target) copies to do first.

        Never writes where somebody else reads: a block with several references is copied (copy on write).
        """
        table, counts = request.block_table, self.pool.ref_counts
        first, last = request.num_computed_tokens // self._size, self.pool.blocks_for(end)
        copies: list[tuple[int, int]] = []
        for index in range(first, min(last, len(table))):
            source = table[index]
            if counts[source] > 1:
                table[index] = self.pool.allocate(request.tenant)
                copies.append((source, table[index]))
                self._release(source)
        while len(table) < last:
            table.append(self.pool.allocate(request.tenant))
        return copies

    def take_over(self, request: Request) -> int:
        """At a block boundary, adopt blocks that other requests computed meanwhile; returns the tokens won."""
        computed = request.num_computed_tokens
        if self._prefix is None or computed % self._size:
            return 0
        chain, table = self._chain(request), request.block_table
        first = index = computed // self._size
        while index < self._adoptable(request):
            block = self._prefix.find(chain[index])
            if block is None:
                break
            self.pool.share(block, request.tenant)
            self._release(table[index])
            table[index] = block
            index += 1
        request.num_computed_tokens = index * self._size
        self._entered[request] = max(self._entered[request], index)
        return (index - first) * self._size

    def digests(self, request: Request, start: int, end: int) -> list[Digest]:
        """Digests of the full blocks within [start, end); none without a cache."""
        if self._prefix is None:
            return []
        return self._chain(request)[self.pool.blocks_for(start) : end // self._size]

    def touched(self, request: Request, start: int, end: int) -> list[Digest]:
        """Digests of the full blocks of `request` that have a token in [start, end); none without a cache."""
        if self._prefix is None:
            return []
        return self._chain(request)[start // self._size : self.pool.blocks_for(end)]

    def room(self, request: Request) -> int:
        """Tokens behind the present ones that can be written without evicting anything."""
        return (len(request.block_table) + self.pool.num_free) * self._size - request.num_tokens

    def commit(self, request: Request) -> None:
        """Offer the blocks that an iteration completed to the prefix cache."""
        full = request.num_computed_tokens // self._size
        entered = self._entered[request]
        if full > entered and self._prefix is not None:
            chain, table = self._chain(request), request.block_table
            for index in range(entered, full):
                self._prefix.enter(chain[index], table[index])
            self._entered[request] = full

    def trim(self, request: Request) -> None:
        """Return the blocks that only rejected drafts needed."""
        while len(request.block_table) > self.pool.blocks_for(request.num_tokens):
            self._release(request.block_table.pop())

    # -- ending ----------------------------------------------------------------------------------------

    def close(self, request: Request) -> None:
        """Return all blocks. The tail goes first, so that it is evicted before the prefix it depends on."""
        if self._prefix is None:
            self.pool.free_all(reversed(request.block_table))
        else:
            for block in reversed(request.block_table):
                self._release(block)
        request.block_table = []
        if request.state_slot != NO_STATE:
            self._state_slots.append(request.state_slot)
            request.state_slot = NO_STATE
        self._entered.pop(request, None)

    def forget(self, request: Request) -> None:
        """Drop the digests of a request that is done for good."""
        self._chains.pop(request, None)

    def freed_by(self, requests: Iterable[Request], keep: list[int]) -> Iterator[tuple[Request, int]]:
        """Blocks that become available by closing `requests` up to each of them; `keep` is not counted."""
        named: Counter[int] = Counter()
        protected, freed = set(keep), 0
        for request in requests:
            for block in request.block_table:
                named[block] += 1
                freed += named[block] == self.pool.ref_counts[block] and block not in protected
            yield request, freed

    def _release(self, block: int) -> None:
        self.pool.release(block, keep=self._prefix is not None and self._prefix.holds(block))

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise AssertionError unless the pool's counts equal what the tables of `requests` name."""
        live = list(requests)
        self.pool.check_integrity(Counter(block for request in live for block in request.block_table))
        if self._prefix is not None:
            self._prefix.check_integrity()
        if self._keeps_states:
            taken = [request.state_slot for request in live]
            if NO_STATE in taken or len({*taken, *self._state_slots}) != len(taken) + len(self._state_slots):
                raise AssertionError("a place for states is two requests', or a request has none")
        if self._entered.keys() - set(live):
            raise AssertionError("a request that no longer runs still has a block table")
