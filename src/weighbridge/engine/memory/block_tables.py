"""Block tables: which blocks hold each request's tokens. Prefix hits, forks, copies, growth, return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import Digest, PrefixCache, before
from weighbridge.engine.request import Request
from weighbridge.models.files.config import NO_STATE


@dataclass(slots=True)
class Opening:
    """How a request would start: blocks it shares, tokens they cover, and what it takes from the pool."""

    shared: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys and values are already there
    fresh: int = 0  # blocks to allocate for the rest of its tokens
    needed: int = 0  # blocks of `num_available` that it uses up: fresh ones, revived hits, a copy on write
    source: int | None = None  # a block that begins as its first fresh one: of it that one becomes a copy

    @property
    def kept(self) -> list[int]:
        """Blocks that it counts on."""
        return self.shared if self.source is None else [*self.shared, self.source]


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
        self._sources: list[int] = []  # blocks that are copied in this iteration
        if prefix is not None:
            pool.on_evict = prefix.forget

    # -- starting --------------------------------------------------------------------------------------

    def opening(self, request: Request) -> Opening:
        """What `request` would share and need if it were admitted now: room for all its present tokens.

        Prefix hits never cover the last token: it is computed again for its logits.
        """
        if self._prefix is None:
            fresh = self.pool.blocks_for(request.num_tokens)
            return Opening(fresh=fresh, needed=fresh)
        counts = self.pool.ref_counts
        shared = self._prefix.longest(self._chain(request), self._adoptable(request) // self._size)
        computed = len(shared) * self._size
        source, begun = self._begun(request, computed, self._adoptable(request))
        if source is not None and counts[source] == 0 and self._prefix.tail(source) == begun:
            shared.append(source)  # it goes on where nobody else does: no copy
            computed, source = computed + begun, None
        fresh = self.pool.blocks_for(request.num_tokens) - len(shared)
        needed = fresh + sum(counts[block] == 0 for block in shared)
        if source is not None:
            held = needed + (counts[source] == 0)  # until it is copied
            if held <= self.pool.num_available:
                return Opening(shared, computed + begun, fresh, held, source)
        return Opening(shared, computed, fresh, needed)

    def _begun(self, request: Request, start: int, end: int) -> tuple[int | None, int]:
        """The block that goes on longest as `request` does from `start` on, where a block begins, and how far.

        One of its tenant's own, even where tenants share whole blocks: by single tokens a text could be guessed.
        """
        assert self._prefix is not None
        tokens = request.tokens[start : min(end, start + self._size)]
        parent = before(self._chain(request), start // self._size, request.salt)
        block, longest = None, 0
        for other, common in self._prefix.beginnings(parent, tokens):
            if common > longest and self.pool.owner(other) == request.tenant:
                block, longest = other, common
        return block, longest

    def opening_of_fork(self, request: Request, parent: Request) -> Opening:
        """As `opening`, sharing all of the parent's prompt blocks, the partly filled last one included.

        The last prompt token runs again, into a block that is shared: one block is needed for its copy.
        """
        shared = parent.block_table[: self.pool.blocks_for(request.num_prompt_tokens)]
        return Opening(shared, request.num_prompt_tokens - 1, 0, 1)

    def open(self, request: Request, opening: Opening) -> list[tuple[int, int]]:
        """Carry out `opening`; returns the (source, target) copies to do in this iteration.

        Hits are shared first, so that allocating cannot evict them.
        """
        for block in opening.kept:
            self.pool.share(block, request.tenant)
        fresh = self.pool.allocate_many(opening.fresh, request.tenant)
        request.block_table = opening.shared + fresh
        request.num_computed_tokens = opening.computed
        if self._keeps_states:
            request.state_slot = self._state_slots.pop()
        self._entered[request] = opening.computed // self._size
        if opening.source is None or self._prefix is None:
            return []
        self._prefix.use(opening.source)
        self._sources.append(opening.source)
        return [(opening.source, fresh[0])]

    def settle(self) -> None:
        """Let go of what was copied: the iteration that did so is over."""
        for block in self._sources:
            self._release(block)
        self._sources.clear()

    def _adoptable(self, request: Request) -> int:
        """Tokens that `request` may take from others: all before its last one, which is computed again for its
        logits; of a prompt that is scored those alone of which that is done."""
        return len(request.scores) if request.is_scoring else request.num_tokens - 1

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
        """Adopt blocks that other requests computed meanwhile, of which `request` has a part or nothing; returns the
        tokens won."""
        if self._prefix is None:
            return 0
        computed, chain, table = request.num_computed_tokens, self._chain(request), request.block_table
        first = index = computed // self._size
        while index < self._adoptable(request) // self._size:
            block = self._prefix.find(chain[index])
            if block is None:
                break
            self.pool.share(block, request.tenant)
            self._release(table[index])
            table[index] = block
            index += 1
        if index == first:
            return 0
        request.num_computed_tokens = index * self._size
        self._entered[request] = max(self._entered[request], index)
        return index * self._size - computed

    def next_block(self, request: Request, start: int) -> Digest | None:
        """The digest of the block with the token at `start`; None where its tokens do not fill it, or without a
        cache."""
        if self._prefix is None:
            return None
        chain, index = self._chain(request), start // self._size
        return chain[index] if index < len(chain) else None

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
            chain, table, size = self._chain(request), request.block_table, self._size
            parent = before(chain, entered, request.salt)
            for index in range(entered, full):
                tokens = request.tokens[index * size : index * size + size]
                self._prefix.enter(chain[index], table[index], parent, tokens)
                parent = chain[index]
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
            self._keep_tail(request)
            for block in reversed(request.block_table):
                self._release(block)
        request.block_table = []
        if request.state_slot != NO_STATE:
            self._state_slots.append(request.state_slot)
            request.state_slot = NO_STATE
        self._entered.pop(request, None)

    def _keep_tail(self, request: Request) -> None:
        """Offer the last block that `request` has partly computed to the prefix cache, unless that has as much."""
        assert self._prefix is not None
        computed = request.num_computed_tokens
        index, filled = divmod(computed, self._size)
        if not filled or self.pool.ref_counts[request.block_table[index]] > 1:
            return
        block, start = request.block_table[index], computed - filled
        found, common = self._begun(request, start, computed)
        if common < filled:
            parent = before(self._chain(request), index, request.salt)
            self._prefix.enter_tail(block, parent, request.tokens[start:computed])
        elif found != block:
            self._prefix.forget(block)

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
        named = Counter(block for request in live for block in request.block_table)
        named.update(self._sources)
        self.pool.check_integrity(named)
        if self._prefix is not None:
            self._prefix.check_integrity()
            for request in live:
                for index, block in enumerate(request.block_table):
                    tail = self._prefix.tail(block)
                    if tail is not None and index * self._size + tail > request.num_computed_tokens:
                        raise AssertionError("what a request will write is taken for a tail")
        if self._keeps_states:
            taken = [request.state_slot for request in live]
            if NO_STATE in taken or len({*taken, *self._state_slots}) != len(taken) + len(self._state_slots):
                raise AssertionError("a place for states is two requests', or a request has none")
        if self._entered.keys() - set(live):
            raise AssertionError("a request that no longer runs still has a block table")
