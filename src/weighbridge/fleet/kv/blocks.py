"""Which prompt blocks a replica holds, by its own account of what it stored and removed. Pure.

A server names its blocks by hashes of its own, which mean nothing to us; but where it stores one it tells the tokens
that are in it and the block before. From these our own digests follow, whatever size its blocks have:

    theirs, 3 tokens each   h1 abc   h2 def   h3 ghi        stored behind each other
    ours, 4 tokens each     abcd completed by h2, efgh by h3, i is left over

One of ours is held as long as the one of theirs that completed it: a server forgets the end of a chain before its
start. A prompt that was sent and has not been answered counts as held too: by the time a second one with the same
beginning is looked at there, the first one's blocks are in the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weighbridge.engine.memory.prefix import Digest
from weighbridge.models.text.block_digests import block_digests, root

#: What a server calls a block: a number or bytes.
BlockHash = int | bytes

#: Blocks of a server that are followed at most, and of ours that they may complete; one that tells of more is not
#: believed.
MOST_BLOCKS = 1 << 21


class TooManyBlocks(Exception):
    """More blocks are told of than any cache has."""


@dataclass(slots=True)
class _Block:
    """One of theirs. `copies`: how often it is there; `last`: our digest up to it, and the tokens behind that."""

    names: tuple[Digest, ...]
    last: Digest
    left: tuple[int, ...]
    copies: int = 1


class KnownBlocks:
    """One replica's blocks, in our digests of `block_size` tokens. Not thread-safe."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._theirs: dict[BlockHash, _Block] = {}
        self._held: Counter[Digest] = Counter()
        self._sent: Counter[Digest] = Counter()
        self.their_size = 0  # tokens of one of their blocks; 0: not told yet
        self.unplaced = 0  # blocks stored behind ones that we have not heard of

    def __len__(self) -> int:
        return len(self._theirs)

    # -- what the server tells -------------------------------------------------------------------------

    def store(
        self,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        tokens: Sequence[int],
        size: int,
        salt: str = "",
        goes_on: bool = False,
    ) -> None:
        """Take note of blocks of `size` tokens each, one behind the other, the first behind `parent`.

        One that is there is there twice then: two requests that computed the same at once have each their own. From
        the very beginning on it is a report of what was found again; `goes_on`: these blocks are more of such a one.
        Raises TooManyBlocks.
        """
        if max(len(self._theirs) + len(hashes), len(self._held)) > MOST_BLOCKS:
            raise TooManyBlocks
        self.their_size = size
        again = goes_on or parent is None
        before = _Block((), root(salt.encode()), ()) if parent is None else self._theirs.get(parent)
        for number, name in enumerate(hashes):
            known = self._theirs.get(name)
            if known is not None:
                known.copies += not again
                before = known
            elif before is None:
                self.unplaced += 1
            else:
                before = self._add(name, before, tokens[number * size : (number + 1) * size])

    def _add(self, name: BlockHash, before: _Block, tokens: Sequence[int]) -> _Block:
        line = [*before.left, *tokens]
        names = block_digests(before.last, line, 0, len(line), self._size)
        left = tuple(line[len(names) * self._size :])
        block = self._theirs[name] = _Block(tuple(names), names[-1] if names else before.last, left)
        self._held.update(names)
        return block

    def remove(self, hashes: Iterable[BlockHash]) -> None:
        """Take note that blocks are gone; of one that is there several times, one copy is."""
        for name in hashes:
            block = self._theirs.get(name)
            if block is None:
                continue
            block.copies -= 1
            if not block.copies:
                del self._theirs[name]
                _take_out(self._held, block.names)

    def clear(self) -> None:
        """Take note that nothing is held any more."""
        self._theirs.clear()
        self._held.clear()

    # -- what is sent there ----------------------------------------------------------------------------

    def sent(self, chain: Sequence[Digest]) -> None:
        """Take note that a prompt of these blocks is on its way there."""
        self._sent.update(chain)

    def ended(self, chain: Sequence[Digest]) -> None:
        """Take note that such a request is over: from now on what is told of its blocks is all that counts."""
        _take_out(self._sent, chain)

    # -- what is asked ---------------------------------------------------------------------------------

    def cached_tokens(self, chain: Sequence[Digest], prompt_tokens: int) -> int:
        """Tokens that the server will find of a prompt with these blocks: whole blocks of its own, and never all."""
        held, sent = self._held, self._sent
        count = 0
        for digest in chain:
            if digest not in held and digest not in sent:
                break
            count += 1
        size = self.their_size or self._size
        return min(count * self._size, prompt_tokens - 1) // size * size

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is held is exactly what the server's blocks complete."""
        held = Counter(name for block in self._theirs.values() for name in block.names)
        if held != self._held:
            raise AssertionError("what counts as held is not what their blocks complete")
        if min(self._sent.values(), default=1) < 1 or min(self._held.values(), default=1) < 1:
            raise AssertionError("a digest is counted that is not there")


def _take_out(counts: Counter[Digest], names: Iterable[Digest]) -> None:
    for name in names:
        left = counts[name] - 1
        if left > 0:
            counts[name] = left
        else:
            del counts[name]
