"""What gateways tell each other of replicas that they have in common: how quick each is, and what its cache holds.

Summaries, and not a word for each request: at most one piece of news in `NEWS_EVERY` seconds, which goes with the look
at the board, and speeds every `SPEEDS_EVERY` where they have changed. Both are hints. Whoever knows a replica's speed
goes by what it has seen itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.speed import LearnedSpeed
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.peers.board import LARGEST_NEWS, BoardState, News
from weighbridge.fleet.peers.membership import is_shared
from weighbridge.fleet.peers.prefix_news import PrefixNews, read_news
from weighbridge.fleet.peers.seal import DIGITS, Seal

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two pieces of news, and between two times that speeds are told; seconds after which it is asked
#: again how quick a replica is, of which nobody knew.
NEWS_EVERY, SPEEDS_EVERY, ASK_AGAIN = 2.0, 10.0, 30.0
#: Speeds that are told, or asked for, at once.
MOST_SPEEDS = 256
#: By what share more must have been observed for a speed to be told again.
MORE = 0.2


class SpeedNote(msgspec.Struct, forbid_unknown_fields=True):
    """A replica's speed as another gateway has learned it; `target`: what answers there."""

    target: str
    times: tuple[float, float, float, float, float]
    firsts: int
    steps: int
    off: float


class Learned(Protocol):
    """A replica, as its gateway has come to know it. `heard`: it has answered at least once."""

    heard: bool

    @property
    def spec(self) -> ReplicaSpec: ...
    @property
    def state(self) -> ReplicaState: ...


class LearnedPool(Protocol):
    """The replicas of one model."""

    @property
    def prefixes(self) -> PrefixIndex: ...
    @property
    def members(self) -> Mapping[str, Learned]: ...


class LearningGateway(Protocol):
    """A gateway, as far as anything is learned there: the live one, and the simulator's."""

    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def pools(self) -> Mapping[str, LearnedPool]: ...


class LearningBoard(Protocol):
    """Where speeds are written down."""

    async def write_speeds(self, speeds: Mapping[str, bytes]) -> None: ...
    async def speeds(self, names: Sequence[str]) -> dict[str, bytes]: ...


class SharedLearning:
    """Of one gateway: what is to be told, and what others told taken in. `me`: the gateway's own name."""

    def __init__(self, gateway: LearningGateway, key: bytes, me: str) -> None:
        self.refused = 0
        self.taken = {"prefixes": 0, "speeds": 0}
        self.read_to = "0-0"  # the last news that were read
        self._gateway, self._me = gateway, me.encode()
        self._news_seal, self._speed_seal = Seal(key, "news"), Seal(key, "speeds")
        self._news = PrefixNews()
        self._followed: dict[str, PrefixIndex] = {}
        self._told_speeds: dict[str, int] = {}  # observations when it was told
        self._asked: dict[str, float] = {}
        self._news_at = self._speeds_at = float("-inf")

    async def share(self, board: LearningBoard, seen: BoardState) -> None:
        """Take in what others have learned, after a look at the board, and tell what was learned here."""
        if seen.news:
            self.read_to = seen.news[-1].id
            self.take(seen.news)
        if own := self.speeds():
            await board.write_speeds(own)
        if unknown := self.unknown():
            self.take_speeds(await board.speeds(unknown))

    # -- what we tell ----------------------------------------------------------------------------------

    def news(self) -> bytes:
        """What to tell now; empty where nothing is new, or it is too soon."""
        now = self._gateway.clock()
        self._follow()
        if now < self._news_at + NEWS_EVERY:
            return b""
        self._news_at = now
        text = self._news.take(now)
        if not text:
            return b""
        text = b"%b %b" % (self._me, text)
        return self._news_seal.of(text) + text

    def speeds(self) -> dict[str, bytes]:
        """Speeds to tell now, by the names of their replicas."""
        now = self._gateway.clock()
        if now < self._speeds_at + SPEEDS_EVERY:
            return {}
        self._speeds_at = now
        found: dict[str, bytes] = {}
        for name, member in self._members().items():
            known = member.state.experience.speed.summary()
            if known is None or len(found) >= MOST_SPEEDS:
                continue
            seen = known.firsts + known.steps
            if seen < (1.0 + MORE) * self._told_speeds.get(name, 0):
                continue
            self._told_speeds[name] = seen
            told = SpeedNote(member.spec.target, known.times, known.firsts, known.steps, known.off)
            text = msgspec.json.encode(told)
            found[name] = self._speed_seal.of(name.encode() + text) + text
        return found

    # -- what we are told ------------------------------------------------------------------------------

    def unknown(self) -> list[str]:
        """Replicas of whose speed nothing is known here, that were not asked for lately."""
        now, found = self._gateway.clock(), []
        for name, member in self._members().items():
            state = member.state
            if (
                state.tells
                or state.experience.speed.known
                or now < self._asked.get(name, -ASK_AGAIN) + ASK_AGAIN
            ):
                continue
            found.append(name)
            self._asked[name] = now
            if len(found) >= MOST_SPEEDS:
                break
        return found

    def take_speeds(self, told: Mapping[str, bytes]) -> None:
        members = self._members()
        for name, data in told.items():
            member = members.get(name)
            mark, text = data[:DIGITS], data[DIGITS:]
            if member is None:
                continue
            if len(data) > 4096 or not self._speed_seal.fits(mark, name.encode() + text):
                self._refuse(f"the speed of {name} is not sealed with this gateway's admin_key")
                continue
            try:
                one = msgspec.json.decode(text, type=SpeedNote)
            except (msgspec.MsgspecError, ValueError) as error:
                self._refuse(f"the speed of {name} is malformed: {str(error)[:200]}")
                continue
            known = LearnedSpeed(one.times, one.firsts, one.steps, one.off)
            if one.target == member.spec.target and member.state.begin_with(known):
                self.taken["speeds"] += 1

    def take(self, news: Sequence[News]) -> None:
        """Believe of replicas' caches what others have sent there."""
        for one in news:
            mark, text = one.text[:DIGITS], one.text[DIGITS:]
            if text.startswith(self._me + b" "):
                continue
            if len(one.text) > LARGEST_NEWS or not self._news_seal.fits(mark, text):
                self._refuse("news of prefixes are not sealed with this gateway's admin_key")
                continue
            try:
                for model, replica, blocks in read_news(text.partition(b" ")[2]):
                    self._hear(model, replica, blocks)
            except ValueError as error:
                self._refuse(f"news of prefixes are malformed: {error}")

    # -- inside ----------------------------------------------------------------------------------------

    def _hear(self, model: str, replica: str, blocks: list[bytes]) -> None:
        pool = self._gateway.pools.get(model)
        member = pool.members.get(replica) if pool is not None else None
        if pool is not None and member is not None and is_shared(member.spec) and member.state.kv is None:
            pool.prefixes.hear(replica, blocks)
            self.taken["prefixes"] += 1

    def _follow(self) -> None:
        """Hear of every prompt that is sent somewhere."""
        for name, pool in self._gateway.pools.items():
            if self._followed.get(name) is not pool.prefixes:
                self._followed[name] = pool.prefixes
                pool.prefixes.heard = self._noting(name, pool.members)

    def _noting(self, model: str, members: Mapping[str, Learned]) -> Callable[[str, Sequence[bytes]], None]:
        news, clock = self._news, self._gateway.clock

        def note(replica: str, chain: Sequence[bytes]) -> None:
            member = members.get(replica)
            if member is not None and is_shared(member.spec):
                news.note(model, replica, chain, clock())

        return note

    def _members(self) -> dict[str, Learned]:
        """Replicas that other gateways may have too, by their models and names."""
        return {
            f"{model}/{name}": member
            for model, pool in self._gateway.pools.items()
            for name, member in pool.members.items()
            if member.heard and is_shared(member.spec)
        }

    def _refuse(self, why: str) -> None:
        self.refused += 1
        if self.refused == 1:
            log.warning("Redis: %s; it is left alone, as all such are", why)
