"""The prefix cache: which block already holds the keys and values of these tokens behind that prefix."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from weighbridge.models.text.block_digests import ROOT, block_digests, root

#: Names a block by its tokens and all before them. 256 bits: no collision to fear, by chance or intent.
Digest = bytes

#: Bytes of a token as they are kept.
_WIDTH = array("i").itemsize
#: Blocks that are looked at, the newest first, for one that begins as the rest of a prompt does.
MOST_LOOKED_AT = 16


@dataclass(slots=True)
class _Held:
    """What a block holds: `tokens` as int32. `digest`: its name, once it is full."""

    place: tuple[Digest, bytes]  # where it is looked for: the prefix before it, and its first token
    tokens: bytes
    digest: Digest | None


class PrefixCache:
    """Full blocks by the chained digest of their tokens, and all blocks by what they begin with.

    A digest covers the parent's digest and the block's tokens, so equal digests mean equal prefixes. A block
    is entered as soon as its tokens are computed, while its request still runs: the second user of a system
    prompt shares the blocks of the first. Chains of different salts share nothing: tenants are kept apart so.

    A prompt leaves what is cached in the middle of a block. The tokens of each block are kept, so that the one that
    goes on longest as the prompt does is found; it may be a tail, which its request left partly filled:

        prompt      a b c d | e f g h | i j x y
        cached      a b c d | e f g h | i j k l     found whole, whole, and two tokens of the third
                                      | i j k       a tail would do as well
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: dict[Digest, int] = {}
        self._held: dict[int, _Held] = {}
        #: Blocks by the prefix before them and their first token, the newest last.
        self._beginning: dict[tuple[Digest, bytes], dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def extend(self, chain: list[Digest], tokens: list[int], end: int, salt: bytes = b"") -> None:
        """Add to `chain` the digests of the full blocks of `tokens[:end]` that it does not have yet."""
        size, parent = self._block_size, before(chain, len(chain), salt)
        chain += block_digests(parent, tokens, len(chain) * size, end, size)

    def longest(self, chain: list[Digest], limit: int) -> list[int]:
        """Return the blocks that hold the longest cached prefix of `chain`, at most `limit` of them."""
        blocks: list[int] = []
        for digest in chain[:limit]:
            block = self._blocks.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def find(self, digest: Digest) -> int | None:
        return self._blocks.get(digest)

    def beginnings(self, parent: Digest, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Blocks behind `parent` that begin as `tokens` do, and how many tokens they have in common with these.

        The newest come first, and no more than `MOST_LOOKED_AT`.
        """
        wanted = array("i", tokens).tobytes()
        same = self._beginning.get((parent, wanted[:_WIDTH])) if wanted else None
        for block in islice(reversed(same), MOST_LOOKED_AT) if same else ():
            yield block, _common(self._held[block].tokens, wanted)

    def enter(self, digest: Digest, block: int, parent: Digest, tokens: Sequence[int]) -> None:
        """Note that `block` holds the contents named by `digest`: `tokens` behind `parent`.

        The first block with the same contents stays.
        """
        if digest not in self._blocks:
            self._note(block, parent, tokens, digest)
            self._blocks[digest] = block
        elif self._blocks[digest] != block:
            self.forget(block)  # it may have been a tail

    def enter_tail(self, block: int, parent: Digest, tokens: Sequence[int]) -> None:
        """Note that `block` holds `tokens` behind `parent`, and perhaps more that counts for nothing."""
        self._note(block, parent, tokens, None)

    def _note(self, block: int, parent: Digest, tokens: Sequence[int], digest: Digest | None) -> None:
        self.forget(block)
        packed = array("i", tokens).tobytes()
        place = (parent, packed[:_WIDTH])
        self._held[block] = _Held(place, packed, digest)
        same = self._beginning.get(place)
        if same is None:
            self._beginning[place] = {block: None}
        else:
            same[block] = None

    def holds(self, block: int) -> bool:
        """Whether `block` serves hits: it is worth keeping when its last reference goes."""
        return block in self._held

    def tail(self, block: int) -> int | None:
        """How many tokens of `block` count where it is a tail; None: it is full, or serves no hits."""
        held = self._held.get(block)
        return None if held is None or held.digest is not None else len(held.tokens) // _WIDTH

    def use(self, block: int) -> None:
        """Let `block` be the newest of those that begin as it does."""
        same = self._beginning[self._held[block].place]
        del same[block]
        same[block] = None

    def forget(self, block: int) -> None:
        """Forget what `block` holds, if it served hits: the pool gives it to somebody else, or it is written anew."""
        held = self._held.pop(block, None)
        if held is None:
            return
        if held.digest is not None:
            del self._blocks[held.digest]
        same = self._beginning[held.place]
        del same[block]
        if not same:
            del self._beginning[held.place]

    def __iter__(self) -> Iterator[int]:
        """The blocks that serve hits."""
        return iter(self._held)

    def tokens(self, block: int) -> Sequence[int]:
        """What `block` is known to hold; nothing where it serves no hits."""
        held = self._held.get(block)
        return () if held is None else array("i", held.tokens)

    def check_integrity(self) -> None:
        """Raise AssertionError unless all ways to a block lead to what it holds."""
        digests = {held.digest: block for block, held in self._held.items() if held.digest is not None}
        if self._blocks != digests:
            raise AssertionError("the prefix cache names a block twice")
        found = sorted(block for same in self._beginning.values() for block in same)
        placed = all(self._held[block].place == at for at, same in self._beginning.items() for block in same)
        if found != sorted(self._held) or not placed or not all(self._beginning.values()):
            raise AssertionError("a block is not found by its beginning, or one that holds nothing is")
        if any(
            (held.digest is not None) != (len(held.tokens) == self._block_size * _WIDTH)
            for held in self._held.values()
        ):
            raise AssertionError("a full block has no name, or one that is not full has")


def before(chain: Sequence[Digest], index: int, salt: bytes) -> Digest:
    """What stands before block `index` of a chain."""
    if index:
        return chain[index - 1]
    return root(salt) if salt else ROOT


def _common(one: bytes, other: bytes) -> int:
    """How many tokens two texts have in common from their beginning on: all before the lowest bit that differs."""
    size = min(len(one), len(other))
    differs = int.from_bytes(one[:size], "little") ^ int.from_bytes(other[:size], "little")
    lowest = (differs & -differs).bit_length() - 1 if differs else 8 * size
    return lowest // (8 * _WIDTH)
