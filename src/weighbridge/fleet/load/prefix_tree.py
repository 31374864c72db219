"""Chains of block digests as a compressed radix tree: every stretch that has no fork is one node, a run.

    sent to a and b   d0 d1 d2 d3 d4 d5            runs   d0 d1 d2 d3    a 4, b 4
    sent to a         d0 d1 d2 d3 e4 e5 e6                 |- d4 d5      a 2, b 1: b evicted d5
                                                           `- e4 e5 e6   a 3

A run is found by its first digest. Digests are chained, so where a chain and a run have the same digest they have the
same past: how far they agree takes one comparison where they agree to the end, else a bisection, however many
blocks they have. A run is split where a chain leaves it or ends in it. Two become one where nothing else follows the
first, and whoever holds any of them holds both and used them together: a conversation is one run, or a few where it
has moved between replicas, however many turns it has. The end of a run is cut off when nobody holds it and nothing
follows; a run that nobody holds stays only as the past of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from weighbridge.engine.memory.prefix import Digest

#: Replicas that may hold two runs for them to become one: each of them is looked at.
_MOST_HOLDERS = 8


class Prompt:
    """A prompt that a replica was sent and has held since: it ends with `digest`, behind `at` blocks of the run that
    `holding` is of. `output`: what followed it."""

    __slots__ = ("at", "digest", "holding", "output")

    def __init__(self, digest: Digest, holding: Holding, at: int) -> None:
        self.digest = digest
        self.holding = holding
        self.at = at
        self.output: Holding | None = None


class Holding:
    """What one replica holds of one run: its first `blocks` blocks. Without a run: output, which has no digest.

    The holdings of a replica form a ring in the order of their use, closed by one that holds nothing. `prompts`: those
    that end in it, the shortest first; `answered`: those of them behind which there is, or was, output.
    """

    __slots__ = ("answered", "blocks", "newer", "older", "prompts", "run")

    older: Holding
    newer: Holding

    def __init__(self, run: BlockRun | None, blocks: int = 0) -> None:
        self.run = run
        self.blocks = blocks
        self.prompts: list[Prompt] = []
        self.answered: list[Prompt] = []

    def follow(self, other: Holding) -> None:
        """Enter the ring as the next newer one to `other`."""
        self.older, self.newer = other, other.newer
        other.newer.older = self
        other.newer = self

    def leave(self) -> None:
        """Leave the ring."""
        self.older.newer, self.newer.older = self.newer, self.older
        del self.older, self.newer  # else they would keep each other alive

    def lose_prompts(self, blocks: int) -> list[Prompt]:
        """Those that end behind the first `blocks` blocks are no more of it, and returned."""
        lost = []
        while self.prompts and self.prompts[-1].at > blocks:
            lost.append(self.prompts.pop())
        if self.answered:
            self.answered = [one for one in self.answered if one.at <= blocks]
        return lost

    def take_prompts(self, other: Holding, by: int) -> None:
        """Those of `other` that are not longer than this holding are of it now, `by` blocks longer than there."""
        for mine, theirs in ((self.prompts, other.prompts), (self.answered, other.answered)):
            mine += [one for one in theirs if one.at + by <= self.blocks]
        for one in other.prompts:
            if one.at + by <= self.blocks:
                one.at += by
                one.holding = self


class BlockRun:
    """A stretch of a chain. `whole`: the replicas, a bit each, that hold all of it; `holdings`: by such a bit, and
    `held`: those bits.

    The digests are one piece of memory: to free hundreds of objects takes longer than all else here.
    """

    __slots__ = ("_digests", "blocks", "children", "first", "held", "holdings", "last", "parent", "whole")

    def __init__(self, first: Digest, digests: bytes | bytearray, parent: BlockRun | None) -> None:
        self.first = first
        self.parent = parent
        self.children = 0
        self.whole = self.held = 0
        self.holdings: dict[int, Holding] = {}
        self._digests = bytearray(digests)
        self.blocks = len(digests) // len(first)
        self.last = self[self.blocks - 1]

    def __getitem__(self, number: int) -> Digest:
        width = len(self.first)
        return bytes(self._digests[number * width : (number + 1) * width])

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

    def append(self, other: BlockRun) -> None:
        """Go on with the digests of `other`; who holds what is up to the caller."""
        width = len(self.first)
        del self._digests[self.blocks * width :]
        self._digests += other._digests[: other.blocks * width]
        self.blocks += other.blocks
        self.last = other.last

    def cut_head(self, blocks: int) -> bytearray:
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

    def known(self, chain: Sequence[Digest]) -> tuple[list[BlockRun], int]:
        """The runs that `chain` begins with, the last one split where it is left or ends there; and of how many blocks
        they are."""
        path: list[BlockRun] = []
        end = 0
        for run, start, agreed in self.along(chain):
            path.append(run if agreed == run.blocks else self.split(run, agreed))
            end = start + agreed
        return path, end

    def grow(self, parent: BlockRun | None, digests: Sequence[Digest]) -> BlockRun:
        """A new run behind `parent`, of digests that did not follow it so far."""
        run = BlockRun(digests[0], b"".join(digests), parent)
        if parent is not None:
            parent.children += 1
        self._runs[run.first] = run
        return run

    def join(self, path: Sequence[BlockRun]) -> BlockRun:
        """Make one of those of the runs of a chain where that changes nothing, and return the last."""
        past = path[0]
        for run, behind in zip_longest(path[1:], path[2:]):
            if past.children == 1 and run.children == (behind is not None) and _are_one(past, run):
                self._absorb(past, run)
                if behind is not None:
                    behind.parent = past
            else:
                past = run
        return past

    def _absorb(self, past: BlockRun, run: BlockRun) -> None:
        """Make `run` a part of the one before it; the parent of what follows is up to the caller."""
        for bit, behind in run.holdings.items():
            holding = past.holdings[bit]
            before, holding.blocks = holding.blocks, holding.blocks + behind.blocks
            behind.leave()
            holding.take_prompts(behind, before)
        run.holdings.clear()  # else it and they would keep each other alive
        past.append(run)
        past.children = run.children
        del self._runs[run.first]

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
                _split_prompts(holding, rest)
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
            if any(not _prompts_fit(holding) for holding in run.holdings.values()):
                raise AssertionError("a prompt is entered where it does not end")
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


def _are_one(past: BlockRun, run: BlockRun) -> bool:
    """Whether all who hold any of two runs hold both, and used them together."""
    held = run.held
    if not (held == run.whole == past.held == past.whole) or held.bit_count() > _MOST_HOLDERS:
        return False
    return all(past.holdings[bit].older is holding for bit, holding in run.holdings.items())


def _split_prompts(head: Holding, rest: Holding) -> None:
    """What was one holding is two now, each with the prompts that end in it."""
    if not rest.prompts:
        return
    prompts, answered = rest.prompts, rest.answered
    head.take_prompts(rest, 0)
    rest.prompts = [one for one in prompts if one.holding is rest]
    rest.answered = [one for one in answered if one.holding is rest]
    for one in rest.prompts:
        one.at -= head.blocks


def _prompts_fit(holding: Holding) -> bool:
    """Whether a holding's prompts end in it, in order."""
    run, ends = holding.run, [one.at for one in holding.prompts]
    return (
        run is not None
        and ends == sorted(set(ends))
        and all(0 < one.at <= holding.blocks and run[one.at - 1] == one.digest for one in holding.prompts)
        and all(one.holding is holding for one in holding.prompts)
        and {id(one) for one in holding.answered} <= {id(one) for one in holding.prompts}
    )
