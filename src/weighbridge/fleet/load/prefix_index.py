"""Which replica holds which prompt blocks: what was sent there, less what it has likely evicted since.

Blocks have chained digests (see `engine.memory.prefix`), and `prefix_tree` keeps them by stretches that were sent
as one, the runs. A chain covers its past, and every replica forgets the blocks at the end of a chain before those
at its start, so what a replica holds of a chain is always a prefix of it:

    chain     d0   d1   d2   d3   d4   d5
    runs      ------------   -------   --
    replicas  a, b, c: all   a: all    -        -> a holds 5 blocks, b 4, c 3
                             b: 1

Whoever holds a run whole goes on to the next; the others end there. Each replica has its holdings in a ring, the
least recently used first, whose blocks are forgotten from the end of the run when others need the room:

    oldest   (run, blocks) - (run, blocks) - output - (run, blocks)   newest

Output has no digest until somebody sends it back. Whoever goes on behind the whole of an earlier prompt most likely
does: it is the next turn of that conversation, and the blocks of the answer count as matched too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from weighbridge.engine.memory.prefix import Digest
from weighbridge.fleet.load.prefix_tree import BlockRun, Holding, PrefixTree, Prompt

#: A run of a chain, where it begins, and how many blocks of it are the chain's.
Step = tuple[BlockRun, int, int]
#: Blocks remembered of a replica whose cache size is not known.
DEFAULT_BLOCKS = 8192
#: Replicas of a group that are looked through at once: numbers of a thousand bits are slow to reckon with.
_PIECE_BITS = 30
_PIECE = (1 << _PIECE_BITS) - 1


class _Held:
    """What one replica is believed to hold. `prompts`: by the last digest."""

    __slots__ = ("bit", "capacity", "prompts", "ring", "used")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.used = 0
        self.ring = Holding(None)
        self.ring.older = self.ring.newer = self.ring
        self.prompts: dict[Digest, Prompt] = {}

    def __iter__(self) -> Iterator[Holding]:
        """Least recently used first. What was yielded may leave."""
        holding = self.ring.newer
        while holding is not self.ring:
            newer = holding.newer
            yield holding
            holding = newer

    def use(self, run: BlockRun, before: BlockRun | None = None) -> None:
        """Hold all of `run`, as its most recently used; `before`: but for that one, which it was used with."""
        holding = run.holdings.get(self.bit)
        if holding is None:
            holding = run.holdings[self.bit] = Holding(run)
            run.held |= self.bit
        else:
            holding.leave()
        holding.follow(self.ring.older if before is None else before.holdings[self.bit].older)
        self.used += run.blocks - holding.blocks
        holding.blocks = run.blocks
        run.whole |= self.bit

    def sent(self, digest: Digest, run: BlockRun) -> None:
        """It was sent a prompt that ends with `digest`, where `run` does."""
        if digest not in self.prompts:
            holding = run.holdings[self.bit]
            self.prompts[digest] = prompt = Prompt(digest, holding, run.blocks)
            holding.prompts.append(prompt)

    def answered(self, digest: Digest) -> int:
        """Blocks of output that it holds behind a prompt that ends with `digest`."""
        prompt = self.prompts.get(digest)
        return 0 if prompt is None or prompt.output is None else prompt.output.blocks

    def answer(self, digest: Digest, output: Holding) -> None:
        """`output` followed the prompt that ends with `digest`, if that is held."""
        prompt = self.prompts.get(digest)
        if prompt is None:
            return
        if prompt.output is None:
            prompt.holding.answered.append(prompt)
        else:
            self.drop_output(prompt.output)
        prompt.output = output

    def drop_answers(self, run: BlockRun, but: Digest) -> None:
        """The output behind prompts that end in `run` is gone or known by name now, except behind one."""
        holding = run.holdings[self.bit]
        if not holding.answered:
            return
        kept = []
        for prompt in holding.answered:
            if prompt.digest == but:
                kept.append(prompt)
            elif prompt.output is not None:
                self.drop_output(prompt.output)
                prompt.output = None
        holding.answered = kept

    def drop_output(self, output: Holding) -> None:
        if output.blocks:
            self.used -= output.blocks
            output.blocks = 0
            output.leave()


class PrefixIndex:
    """Bounded: per replica, as many blocks as its cache holds, the least recently used forgotten first.

    Entering and forgetting cost O(runs of the chain), a look-up O(runs + replicas); a chain has a run for each place
    where others left it, or where it went on at another replica. All digests must be of one length.
    """

    def __init__(self) -> None:
        self._tree = PrefixTree()
        self._held: dict[str, _Held] = {}
        self._names: list[str] = []  # by the number of their bit; empty where nobody has it
        self._memo: tuple[Sequence[Digest], dict[str, int]] | None = None
        self._walked: tuple[Sequence[Digest], list[Step]] | None = None
        #: Hears which prompt was sent where; None: nobody does.
        self.heard: Callable[[str, Sequence[Digest]], None] | None = None

    def add_replica(self, name: str, blocks: int | None = None) -> None:
        """Begin to keep track of `name`, whose cache holds `blocks` blocks; again: a new size, same contents."""
        capacity = DEFAULT_BLOCKS if blocks is None else max(blocks, 1)
        held = self._held.get(name)
        if held is not None:
            held.capacity = capacity
            self._evict(held)
            self._memo = self._walked = None
            return
        if "" not in self._names:
            self._names.append("")
        number = self._names.index("")
        self._names[number] = name
        self._held[name] = _Held(1 << number, capacity)

    def remove_replica(self, name: str) -> None:
        """The replica is gone, or lost its cache: nothing it held counts any more."""
        held = self._held.pop(name, None)
        if held is None:
            return
        for holding in held:
            if holding.run is not None:
                self._keep(held, holding, holding.run, 0)
        self._names[held.bit.bit_length() - 1] = ""
        self._memo = self._walked = None

    def blocks(self, name: str) -> int:
        """Prompt blocks `name` is believed to hold."""
        return sum(holding.blocks for holding in self._held.get(name, ()) if holding.run is not None)

    def matched(self, chain: Sequence[Digest], among: Iterable[str] | None = None) -> Mapping[str, int]:
        """How many leading blocks of `chain` each replica holds; those that hold none are left out.

        `among`: only these are looked up.
        """
        if among is None and self._memo is not None and self._memo[0] is chain:
            return self._memo[1]
        asked = -1 if among is None else self._bits(among)
        found: dict[str, int] = {}
        left = end = 0
        for run, start, agreed in self._walk(chain):
            if not start:
                left = run.held & asked
            ending = left & ~run.whole
            while ending:
                bit = ending & -ending
                holding = run.holdings.get(bit)
                self._end(bit, chain, start + (min(holding.blocks, agreed) if holding else 0), found)
                ending ^= bit
            left &= run.whole
            end = start + agreed
            if not left:
                break
        while left:
            bit = left & -left
            self._end(bit, chain, end, found)
            left ^= bit
        if among is None:
            self._memo = (chain, found)
        return found

    def leading(self, chain: Sequence[Digest], most: int, turn: int = 0) -> list[str]:
        """Names of at most `most` replicas that hold the longest beginnings of `chain`, the longest first.

        Of those with equally long ones, which are taken depends on `turn`. Output behind a prompt is not counted.
        """
        groups: list[int] = []  # of replicas, a bit each; later ones hold more
        left = -1
        for run, _, _ in self._walk(chain):
            left &= run.held
            groups += (left & ~run.whole, left & run.whole)
            left &= run.whole
            if not left:
                break
        names: list[str] = []
        seen = 0
        for group in reversed(groups):
            self._take(group & ~seen, most, turn, names)
            seen |= group
            if len(names) >= most:
                break
        return names

    def _take(self, group: int, most: int, turn: int, names: list[str]) -> None:
        """Add the names of `group` until there are `most`, beginning at a place that `turn` says."""
        if not group:
            return
        begin = turn % group.bit_length()
        behind = group >> begin
        for part, at in ((behind, begin), (group ^ (behind << begin), 0)):
            while part and len(names) < most:
                piece, part = part & _PIECE, part >> _PIECE_BITS
                while piece and len(names) < most:
                    bit = piece & -piece
                    names.append(self._names[at + bit.bit_length() - 1])
                    piece ^= bit
                at += _PIECE_BITS

    def _walk(self, chain: Sequence[Digest]) -> list[Step]:
        """The runs of `chain`, found once however often it is asked for."""
        if self._walked is None or self._walked[0] is not chain:
            self._walked = (chain, list(self._tree.along(chain)))
        return self._walked[1]

    def _bits(self, names: Iterable[str]) -> int:
        bits = 0
        for name in names:
            held = self._held.get(name)
            if held is not None:
                bits |= held.bit
        return bits

    def _end(self, bit: int, chain: Sequence[Digest], end: int, found: dict[str, int]) -> None:
        """The replica of `bit` holds `chain[:end]`, and perhaps the output behind."""
        name = self._names[bit.bit_length() - 1]
        if end < len(chain):
            end = min(end + self._held[name].answered(chain[end - 1]), len(chain))
        found[name] = end

    def enter(self, name: str, chain: Sequence[Digest]) -> None:
        """`name` was sent a prompt with these blocks: it holds them now, as its most recently used."""
        held = self._held[name]
        if not chain:
            return
        if self.heard is not None:
            self.heard(name, chain)
        self._enter(held, chain)

    def hear(self, name: str, chain: Sequence[Digest]) -> None:
        """Somebody else has sent `name` a prompt that begins with these blocks."""
        held = self._held.get(name)
        if held is not None and chain:
            self._enter(held, chain)

    def _enter(self, held: _Held, chain: Sequence[Digest]) -> None:
        path, end = self._tree.known(chain)
        for run in reversed(path):  # the end is the older, so that it is forgotten first
            held.use(run)
            held.drop_answers(run, chain[-1])
        if end < len(chain):
            last = path[-1] if path else None
            path.append(self._tree.grow(last, chain[end:]))
            held.use(path[-1], last)
        held.sent(chain[-1], self._tree.join(path))
        self._evict(held)
        self._memo = self._walked = None

    def occupy(self, name: str, blocks: int, behind: Digest | None = None) -> None:
        """`name` filled `blocks` blocks with output, which push others out.

        `behind`: the last digest of the prompt, where one output followed it. It is found again behind that prompt
        where `name` has held this since it was sent.
        """
        held = self._held.get(name)
        if held is None or blocks < 1:
            return
        output = Holding(None, blocks)
        output.follow(held.ring.older)
        held.used += blocks
        if behind is not None:
            held.answer(behind, output)
        self._evict(held)
        self._memo = self._walked = None

    def forget(self, name: str, chain: Sequence[Digest], start: int = 0) -> None:
        """`name` does not hold `chain[start:]` after all."""
        held = self._held.get(name)
        if held is None:
            return
        for run, begin, agreed in self._tree.along(chain):
            holding = run.holdings.get(held.bit)
            kept = max(start - begin, 0)
            if holding is None or holding.blocks <= kept or kept >= agreed:
                continue
            if holding.blocks > agreed:  # the rest is of another chain
                run = self._tree.split(run, agreed)
            self._keep(held, run.holdings[held.bit], run, kept)
        self._memo = self._walked = None

    # -- inside ----------------------------------------------------------------------------------------

    def _evict(self, held: _Held) -> None:
        while held.used > held.capacity:
            oldest = held.ring.newer
            if oldest.run is None:
                held.drop_output(oldest)
            else:
                excess = held.used - held.capacity
                self._keep(held, oldest, oldest.run, max(oldest.blocks - excess, 0))

    def _keep(self, held: _Held, holding: Holding, run: BlockRun, blocks: int) -> None:
        """Of `run`, of which it holds more, the replica holds `blocks` blocks from now on."""
        for prompt in holding.lose_prompts(blocks):
            del held.prompts[prompt.digest]
        held.used -= holding.blocks - blocks
        holding.blocks = blocks
        run.whole &= ~held.bit
        if not blocks:
            holding.leave()
            del run.holdings[held.bit]
            run.held ^= held.bit
        self._tree.trim(run)

    def check_integrity(self) -> None:
        """Raise AssertionError unless tree and holdings agree and every holding is within its bound."""
        runs = self._tree.check_integrity()
        entered = sum(len(run.holdings) for run in runs)
        for held in self._held.values():
            mine = [holding for holding in held if holding.run is not None]
            entered -= len(mine)
            if any(holding.run.holdings.get(held.bit) is not holding for holding in mine if holding.run):
                raise AssertionError("a replica's holding is not entered with its run")
            if held.used != sum(holding.blocks for holding in held) or held.used > held.capacity:
                raise AssertionError("a replica's blocks are miscounted")
            age = {id(holding.run): number for number, holding in enumerate(mine)}
            pasts = [(age[id(h.run)], age.get(id(h.run.parent), len(age))) for h in mine if h.run]
            if any(own > past for own, past in pasts):
                raise AssertionError("a replica would forget the start of a chain before its end")
            entries = {prompt.digest: prompt for holding in mine for prompt in holding.prompts}
            if held.prompts != entries:
                raise AssertionError("an answer is kept behind a prompt that is not held")
        if entered:
            raise AssertionError("the prefix tree names a replica that does not hold a run, or is gone")
