"""Following the events of one replica: what is known, from when on, and whether it can be gone by. Pure.

Batches are numbered. One that is missing may have removed what we still count, so that all is forgotten unless it can
be had again; and what was stored before we listened is never told again. `whole` says that nothing was missed since
the cache was empty. Until then, and while no events come that should, guesses are gone by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from weighbridge.engine.memory.prefix import Digest
from weighbridge.fleet.kv.blocks import KnownBlocks, TooManyBlocks
from weighbridge.fleet.kv.events import BlocksCleared, BlocksRemoved, BlocksStored, Event, EventBatch

#: Where a block is that counts. What is in other tiers comes with work, and nobody says how much.
_NEAR = frozenset({None, "GPU"})
#: Of hybrid models one group of layers is followed.
_GROUP = frozenset({None, 0})
#: Events of a long batch after which others have a turn, and tokens and blocks of a long event.
TURN, TURN_TOKENS, TURN_BLOCKS = 64, 1 << 14, 512
#: Seconds after which a prompt that was computed must have shown in events.
DUE_WITHIN = 5.0


class InLine(Enum):
    """Where a batch stands in the line."""

    NEXT = auto()
    OLD = auto()  # heard before
    GAP = auto()  # some before it were not heard


@dataclass(slots=True)
class Account:
    """What was heard and how it was used, for metrics."""

    stored: int = 0  # blocks
    removed: int = 0
    cleared: int = 0  # times
    gaps: int = 0  # times that batches were missing and could not be had again
    missed: int = 0  # batches
    paused: int = 0  # times that it told more than could be taken in
    restarts: int = 0
    unreadable: int = 0
    known: int = 0  # prompts looked up, and gone by what is known
    guessed: int = 0  # or not


@dataclass(slots=True)
class Following:
    """Keeps `blocks` as the replica says they are."""

    blocks: KnownBlocks
    whole: bool = False
    next_number: int = 0
    account: Account = field(default_factory=Account)
    _told_at: float = float("-inf")  # of the last batch, by the server's clock
    _due: float | None = None  # since when an event should have come

    # -- what is heard ---------------------------------------------------------------------------------

    def place_of(self, number: int, batch: EventBatch) -> InLine:
        """Where this batch stands. One that is younger than the last with a lower number is of a server that was
        started anew, with an empty cache: from the first one on all is new."""
        if number < self.next_number:
            if batch.at <= self._told_at:
                return InLine.OLD
            self.account.restarts += 1
            self.forget()
            self.next_number = 0
        return InLine.NEXT if number == self.next_number else InLine.GAP

    def skip_to(self, number: int) -> None:
        """Go on with `number` although what came before cannot be had."""
        self.account.gaps += 1
        self.account.missed += max(number - self.next_number, 0)
        self.forget()
        self.next_number = number

    def forget(self) -> None:
        """Nothing can be gone by any more."""
        self.blocks.clear()
        self.whole = False

    def nothing_yet(self) -> None:
        """The server was asked for all it ever told, and has told nothing: its cache is empty."""
        self.whole = self.whole or not self.next_number

    def begin_anew(self) -> None:
        """Listen as if for the first time: nothing is known of what happened meanwhile."""
        self.forget()
        self.next_number, self._told_at, self._due = 0, float("-inf"), None

    def take(self, number: int, batch: EventBatch, now: float) -> Iterator[None]:
        """Take in a batch, in turns. Raises UnreadableEvents, where what came before it has been taken in."""
        if not number:
            self.whole = True
        self.next_number, self._told_at, self._due = number + 1, batch.at, None
        for count, event in enumerate(batch.events(), 1):
            try:
                yield from self._apply(event)
            except TooManyBlocks:
                self.forget()
            if not count % TURN:
                yield

    def _apply(self, event: Event) -> Iterator[None]:
        if isinstance(event, BlocksCleared):
            self.account.cleared += 1
            self.blocks.clear()
            self.whole = True
        elif event.medium not in _NEAR or event.group_idx not in _GROUP:
            return
        elif isinstance(event, BlocksRemoved):
            self.account.removed += len(event.block_hashes)
            self.blocks.remove(event.block_hashes)
        elif isinstance(event, BlocksStored):
            self.account.stored += len(event.block_hashes)
            salt = event.salt
            if salt is not None and len(event.token_ids) == len(event.block_hashes) * event.block_size:
                yield from self._store(event, salt)

    def _store(self, event: BlocksStored, salt: str) -> Iterator[None]:
        """Take note of blocks, some at a time."""
        hashes, parent, size = event.block_hashes, event.parent_block_hash, event.block_size
        at_once = min(max(TURN_TOKENS // size, 1), TURN_BLOCKS)
        for at in range(0, len(hashes), at_once):
            some, tokens = hashes[at : at + at_once], event.token_ids[at * size : (at + at_once) * size]
            before = hashes[at - 1] if at else parent
            self.blocks.store(some, before, tokens, size, salt, goes_on=bool(at) and parent is None)
            if len(hashes) > at_once:
                yield

    # -- what is sent ----------------------------------------------------------------------------------

    def sent(self, chain: Sequence[Digest]) -> None:
        """Take note that a prompt of these blocks is on its way there."""
        self.blocks.sent(chain)

    def computed(self, tokens: int, now: float) -> None:
        """Take note that a prompt was computed there, `tokens` of it anew: that has to show."""
        if self._due is None and tokens >= 2 * (self.blocks.their_size or 1):
            self._due = now

    def ended(self, chain: Sequence[Digest]) -> None:
        """Take note that a request is over."""
        self.blocks.ended(chain)

    # -- what is asked ---------------------------------------------------------------------------------

    def is_reliable(self, now: float) -> bool:
        """Whether what is known is what there is."""
        return self.whole and (self._due is None or now - self._due < DUE_WITHIN)

    def cached_tokens(self, chain: Sequence[Digest], prompt_tokens: int, now: float) -> int | None:
        """Tokens of a prompt of these blocks that are cached there; None: guess."""
        if not self.is_reliable(now):
            self.account.guessed += 1
            return None
        self.account.known += 1
        return self.blocks.cached_tokens(chain, prompt_tokens)

    def in_words(self, now: float) -> str:
        """How it stands, for people."""
        if self.is_reliable(now):
            return f"known: {len(self.blocks)} blocks"
        return "guessed: its events have stopped" if self.whole else "guessed: not heard from its beginning"
