"""The prefix cache: which block already holds the keys and values of these tokens behind that prefix."""

from __future__ import annotations

from weighbridge.models.text.block_digests import ROOT, block_digests, root

#: Names a block by its tokens and all before them. 256 bits: no collision to fear, by chance or intent.
Digest = bytes


class PrefixCache:
    """Full blocks by the chained digest of their tokens.

    A digest covers the parent's digest and the block's tokens, so equal digests mean equal prefixes. A block
    is entered as soon as its tokens are computed, while its request still runs: the second user of a system
    prompt shares the blocks of the first. Chains of different salts share nothing: tenants are kept apart so.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: dict[Digest, int] = {}
        self._digests: dict[int, Digest] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def extend(self, chain: list[Digest], tokens: list[int], end: int, salt: bytes = b"") -> None:
        """Add to `chain` the digests of the full blocks of `tokens[:end]` that it does not have yet."""
        size, parent = self._block_size, chain[-1] if chain else root(salt) if salt else ROOT
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

    def enter(self, digest: Digest, block: int) -> None:
        """Note that `block` holds the contents named by `digest`. The first block with the same contents stays."""
        if digest not in self._blocks:
            self._blocks[digest] = block
            self._digests[block] = digest

    def holds(self, block: int) -> bool:
        """Whether `block` serves hits: it is worth keeping when its last reference goes."""
        return block in self._digests

    def evict(self, block: int) -> None:
        """Forget `block`; the pool gives it to somebody else."""
        del self._blocks[self._digests.pop(block)]

    def check_integrity(self) -> None:
        """Raise AssertionError unless digests and blocks map one to one."""
        if self._blocks != {digest: block for block, digest in self._digests.items()}:
            raise AssertionError("the prefix cache names a block twice")
