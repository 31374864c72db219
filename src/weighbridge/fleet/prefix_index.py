"""Which replica holds which prompt blocks: what was sent there, less what it has likely evicted since.

One dictionary names every block by its chained digest (see `engine.prefix`) and maps it to the replicas that
hold it, a bit each. A chain covers its past, and every replica forgets the blocks at the end of a chain before
those at its start, so what a replica holds of a chain is always a prefix of it:

    chain     d0   d1   d2   d3   d4   d5
    replicas  abc  abc  ab   ab   a    -        -> a holds 5 blocks, b 4, c 2

and the ends are found by bisection, for all replicas in one walk.

Output has no digest until somebody sends it back. Whoever goes on behind the whole of an earlier prompt most likely
does: it is the next turn of that conversation, and the blocks of the answer count as matched too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from weighbridge.engine.prefix import Digest

#: Blocks remembered of a replica whose cache size is not known.
DEFAULT_BLOCKS = 8192


class _Held:
    """What one replica is believed to hold, least recently used first; output has no digest but takes room."""

    __slots__ = ("answers", "bit", "blocks", "capacity", "serial", "used")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.used = 0
        self.blocks: OrderedDict[Digest | int, int] = (
            OrderedDict()
        )  # digest, or number of an output -> blocks
        self.answers: dict[Digest, int] = {}  # last digest of a prompt -> number of the output behind it
        self.serial = 0

    def answered(self, digest: Digest) -> int:
        """Blocks of output that it holds behind a prompt that ends with `digest`."""
        return self.blocks.get(self.answers.get(digest, 0), 0)

    def forget_answer(self, digest: Digest) -> None:
        """The output behind `digest` is gone, or known by name now."""
        self.used -= self.blocks.pop(self.answers.pop(digest), 0)


class PrefixIndex:
    """Bounded: per replica, as many blocks as its cache holds, the least recently used forgotten first.

    Entering and forgetting cost O(blocks of the chain), a look-up O(replicas x log blocks).
    """

    def __init__(self) -> None:
        self._masks: dict[Digest, int] = {}
        self._held: dict[str, _Held] = {}
        self._names: dict[int, str] = {}  # bit -> replica
        self._memo: tuple[Sequence[Digest], dict[str, int]] | None = None

    def add_replica(self, name: str, blocks: int | None = None) -> None:
        """Begin to keep track of `name`, whose cache holds `blocks` blocks; again: a new size, same contents."""
        capacity = DEFAULT_BLOCKS if blocks is None else max(blocks, 1)
        held = self._held.get(name)
        if held is not None:
            held.capacity = capacity
            self._evict(held)
            return
        bit = 1
        while bit in self._names:
            bit <<= 1
        self._names[bit] = name
        self._held[name] = _Held(bit, capacity)

    def remove_replica(self, name: str) -> None:
        """The replica is gone, or lost its cache: nothing it held counts any more."""
        held = self._held.pop(name, None)
        if held is None:
            return
        for key in held.blocks:
            self._drop(held, key)
        del self._names[held.bit]
        self._memo = None

    def blocks(self, name: str) -> int:
        """Prompt blocks `name` is believed to hold."""
        held = self._held.get(name)
        return sum(isinstance(key, bytes) for key in held.blocks) if held else 0

    def matched(self, chain: Sequence[Digest]) -> Mapping[str, int]:
        """How many leading blocks of `chain` each replica holds; those that hold none are left out."""
        if self._memo is not None and self._memo[0] is chain:
            return self._memo[1]
        found: dict[str, int] = {}
        if chain:
            self._walk(chain, found)
        self._memo = (chain, found)
        return found

    def _walk(self, chain: Sequence[Digest], found: dict[str, int]) -> None:
        masks = self._masks
        start = 0
        mask = masks.get(chain[0], 0)
        while mask:
            low, high = start, len(chain) - 1  # the last block that the same replicas hold
            while low < high:
                middle = (low + high + 1) // 2
                if masks.get(chain[middle], 0) & mask == mask:
                    low = middle
                else:
                    high = middle - 1
            start = low + 1
            following = masks.get(chain[start], 0) & mask if start < len(chain) else 0
            ended = mask & ~following
            while ended:
                bit = ended & -ended
                name = self._names[bit]
                held = self._held[name]
                found[name] = start
                if held.answers:
                    found[name] = min(start + held.answered(chain[start - 1]), len(chain))
                ended ^= bit
            mask = following

    def enter(self, name: str, chain: Sequence[Digest]) -> None:
        """`name` was sent a prompt with these blocks: it holds them now, as its most recently used."""
        held = self._held[name]
        blocks, masks, bit, answers = held.blocks, self._masks, held.bit, held.answers
        last = chain[-1] if chain else b""
        for digest in reversed(chain):  # the end is the older, so that it is forgotten first
            if digest in blocks:
                blocks.move_to_end(digest)
            else:
                blocks[digest] = 1
                held.used += 1
                masks[digest] = masks.get(digest, 0) | bit
            if digest in answers and digest is not last:
                held.forget_answer(digest)
        self._evict(held)
        self._memo = None

    def occupy(self, name: str, blocks: int, behind: Digest | None = None) -> None:
        """`name` filled `blocks` blocks with output, which push others out.

        `behind`: the last digest of the prompt, where one output followed it.
        """
        held = self._held.get(name)
        if held is None or blocks < 1:
            return
        if behind in held.answers:
            held.forget_answer(behind)
        held.serial += 1
        held.blocks[held.serial] = blocks
        held.used += blocks
        if behind is not None and behind in held.blocks:
            held.answers[behind] = held.serial
        self._evict(held)
        self._memo = None

    def forget(self, name: str, chain: Sequence[Digest], start: int = 0) -> None:
        """`name` does not hold `chain[start:]` after all."""
        held = self._held.get(name)
        if held is None:
            return
        for digest in chain[start:]:
            if held.blocks.pop(digest, None):
                held.used -= 1
                self._drop(held, digest)
        self._memo = None

    # -- inside ----------------------------------------------------------------------------------------

    def _evict(self, held: _Held) -> None:
        while held.used > held.capacity:
            key, blocks = held.blocks.popitem(last=False)
            held.used -= blocks
            self._drop(held, key)

    def _drop(self, held: _Held, key: Digest | int) -> None:
        if isinstance(key, bytes):
            held.answers.pop(key, None)
            mask = self._masks[key] & ~held.bit
            if mask:
                self._masks[key] = mask
            else:
                del self._masks[key]

    def check_integrity(self) -> None:
        """Raise AssertionError unless masks and holdings agree and every holding is within its bound."""
        masks: dict[Digest, int] = {}
        for held in self._held.values():
            if held.used != sum(held.blocks.values()) or held.used > held.capacity:
                raise AssertionError("a replica's blocks are miscounted")
            for key in held.blocks:
                if isinstance(key, bytes):
                    masks[key] = masks.get(key, 0) | held.bit
        if masks != self._masks:
            raise AssertionError("the prefix index names a block that no replica holds, or misses one")
