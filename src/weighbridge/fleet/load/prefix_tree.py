"""Chains of block digests as a compressed radix tree: every stretch that has no fork is one node, a run.

    sent to a and b   d0 d1 d2 d3 d4 d5            runs   d0 d1 d2 d3    a 4, b 4
    sent to a         d0 d1 d2 d3 e4 e5 e6                 |- d4 d5      a 2, b 1: b evicted d5
                                                           `- e4 e5 e6   a 3

A run is found by its first digest. Digests are chained, so where a chain and a run have the same digest they have the
same past: how far they agree takes one comparison where they agree to the end, else a bisection, however many
blocks they have. A run is split where a chain leaves it or ends in it. Its end is cut off when nobody holds it and
nothing follows; a run that nobody holds stays only as the past of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weighbridge.engine.memory.prefix import Digest


class Holding:
    """What one replica holds of one run: its first `blocks` blocks. Without a run: output, which has no digest.

    The holdings of a replica form a ring in the order of their use, closed by one that holds nothing.
    """

    __slots__ = ("blocks", "newer", "older", "run")

    older: Holding
    newer: Holding

    def __init__(self, run: BlockRun | None, blocks: int = 0) -> None:
        self.run = run
        self.blocks = blocks

    def follow(self, other: Holding) -> None:
        """Enter the ring as the next newer one to `other`."""
        self.older, self.newer = other, other.newer
        other.newer.older = self
        other.newer = self

    def leave(self) -> None:
        """Leave the ring."""
        self.older.newer, self.newer.older = self.newer, self.older
        del self.older, self.newer  # else they would keep each other alive


class BlockRun:
    """A stretch of a chain. `whole`: the replicas, a bit each, that hold all of it; `holdings`: by such a bit, and
    `held`: those bits.

    The digests are one piece of memory: to free hundreds of objects takes longer than all else here.
    """

    __slots__ = ("_digests", "blocks", "children", "first", "held", "holdings", "last", "parent", "whole")

    def __init__(self, first: Digest, digests: bytes, parent: BlockRun | None) -> None:
        self.first = first
        self.parent = parent
        self.children = 0
        self.whole = self.held = 0
        self.holdings: dict[int, Holding] = {}
        self._digests = digests
        self.blocks = len(digests) // len(first)
        self.last = self[self.blocks - 1]

    def __getitem__(self, number: int) -> Digest:
        width = len(self.first)
        return self._digests[number * width : (number + 1) * width]

    def agreement(self, chain: Sequence[Digest], start: int) -> int:
        """On how many blocks it and `chain[start:]` agree, which they do on the first."""
        most = min(self.blocks, len(chain) - start)
        if chain[start + most - 1] == (self.last if most == self.blocks else self[most - 1]):
            return most
        low, high = 1, most - 1
        while low < high:
            middle = (low + high + 1) // 2
            if chain[start + middle - 1] == self[middle - 1]:
                low = middle
            else:
                high = middle - 1
        return low

    def cut_head(self, blocks: int) -> bytes:
        """Lose the first `blocks` digests, which are returned; who holds what is up to the caller."""
        end = blocks * len(self.first)
        head, self._digests = self._digests[:end], self._digests[end : self.blocks * len(self.first)]
        self.blocks -= blocks
        self.first = self[0]
        return head

    def cut_end(self) -> bool:
        """Lose the blocks that nobody holds; False, and unchanged, where nobody holds any."""
        held = max((holding.blocks for holding in self.holdings.values()), default=0)
        if held:
            self.blocks = held
            self.last = self[held - 1]
            self.whole = sum(bit for bit, holding in self.holdings.items() if holding.blocks == held)
            end = held * len(self.first)
            if 2 * end <= len(self._digests):  # not each time: a replica may forget block by block
                self._digests = self._digests[:end]
        return held > 0


class PrefixTree:
    """All runs. Walking along a chain costs O(runs + log blocks), not O(blocks)."""

    def __init__(self) -> None:
        self._runs: dict[Digest, BlockRun] = {}

    def along(self, chain: Sequence[Digest]) -> Iterator[tuple[BlockRun, int, int]]:
        """The runs that `chain` follows: each with where it begins and how many blocks of it are the chain's.

        These are all of its blocks, except of the last run. What was yielded may be split or trimmed meanwhile.
        """
        start, size = 0, len(chain)
        while start < size:
            run = self._runs.get(chain[start])
            if run is None:
                return
            agreed = run.agreement(chain, start)
            whole = agreed == run.blocks
            yield run, start, agreed
            if not whole:
                return
            start += agreed

    def cover(self, chain: Sequence[Digest]) -> list[BlockRun]:
        """The runs that `chain` consists of, made or split where there are none yet."""
        path: list[BlockRun] = []
        end = 0
        for run, start, agreed in self.along(chain):
            path.append(run if agreed == run.blocks else self.split(run, agreed))
            end = start + agreed
        if end < len(chain):
            parent = path[-1] if path else None
            run = BlockRun(chain[end], b"".join(chain[end:]), parent)
            if parent is not None:
                parent.children += 1
            self._runs[run.first] = run
            path.append(run)
        return path

    def split(self, run: BlockRun, blocks: int) -> BlockRun:
        """Make the first `blocks` blocks of `run`, which has more, a run of their own and return it.

        Whoever holds something of both used the rest just before the head.
        """
        first = run.first
        head = BlockRun(first, run.cut_head(blocks), run.parent)
        head.children = 1
        run.parent = head
        self._runs[first] = head
        self._runs[run.first] = run
        for bit, holding in list(run.holdings.items()):
            if holding.blocks > blocks:
                rest, holding = holding, Holding(head, blocks)
                rest.blocks -= blocks
                holding.follow(rest)
            else:
                del run.holdings[bit]
                run.held ^= bit
                holding.run = head
            head.holdings[bit] = holding
            head.held |= bit
            if holding.blocks == blocks:
                head.whole |= bit
        return head

    def trim(self, run: BlockRun) -> None:
        """Cut off what nobody holds and nothing follows: the end of `run`, or all of it and the same of its past."""
        while not run.whole and not run.children and not run.cut_end():
            del self._runs[run.first]
            if run.parent is None:
                return
            run = run.parent
            run.children -= 1

    def check_integrity(self) -> list[BlockRun]:
        """All runs. Raises AssertionError unless they form a tree and each is held, or followed by others."""
        children: dict[Digest, int] = {}
        for first, run in self._runs.items():
            held = {bit: holding.blocks for bit, holding in run.holdings.items()}
            if not (first == run.first == run[0] and run.last == run[run.blocks - 1]):
                raise AssertionError("a run does not begin or end as it is said to")
            if any(holding.run is not run for holding in run.holdings.values()):
                raise AssertionError("a replica's holding is entered with another run")
            if any(not 0 < blocks <= run.blocks for blocks in held.values()):
                raise AssertionError("a replica holds more of a run than there is, or nothing")
            if run.held != sum(held):
                raise AssertionError("it is wrong which replicas hold some of a run")
            if run.whole != sum(bit for bit, blocks in held.items() if blocks == run.blocks):
                raise AssertionError("it is wrong which replicas hold the whole of a run")
            if not run.whole and not run.children:
                raise AssertionError("the tree keeps blocks that no replica holds")
            if run.parent is not None:
                if self._runs.get(run.parent.first) is not run.parent:
                    raise AssertionError("a run's past is not in the tree")
                children[run.parent.first] = children.get(run.parent.first, 0) + 1
        if any(run.children != children.get(first, 0) for first, run in self._runs.items()):
            raise AssertionError("the runs behind a run are miscounted")
        return list(self._runs.values())
