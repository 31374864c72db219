"""Several gateways before the same replicas: each sees what it sends at once, and the others' as late as it is told.

a request   comes to one of the gateways, drawn anew each time, and is placed by that one's own desk
a token     is seen by the gateway that sent the request, when it comes
a load      is told to each gateway by its own probes, as often as the live one asks
news        of prefixes and speeds lie on a board; the live gateway's own code writes and reads them
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from weighbridge.engine.request import FinishReason, Request
from weighbridge.errors import BadInput
from weighbridge.fleet.api import Report
from weighbridge.fleet.config.spec import HealthSpec, ReplicaSpec
from weighbridge.fleet.health import quiet_pause
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.peers.board import NEWS_KEPT, BoardState, News
from weighbridge.fleet.peers.learning import SharedLearning
from weighbridge.fleet.peers.peers import INTERVAL
from weighbridge.fleet.policies import make_policy
from weighbridge.simulator.fleet import SimulatedFleet
from weighbridge.simulator.gateway import MODEL, SimulatedGateway
from weighbridge.simulator.replica import SimulatedReplica
from weighbridge.simulator.simulation import Clock, Feed
from weighbridge.workload.outcomes import Outcome, Outcomes
from weighbridge.workload.requests import SimulatedRequest

#: Seconds within which two gateways that send to one replica cannot know of each other: far less than a probe takes to
#: come round.
UNAWARE = 0.1
#: The seal of news in a simulation, where nobody forges any.
_KEY = b"k" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPace:
    """Seconds between two probes of a replica that has work, and between two looks at the board, as in the live
    gateway; None: nothing is told that way."""

    probe: float | None = HealthSpec().interval
    look: float | None = INTERVAL


AS_LIVE = SharingPace()


class SimulatedBoard:
    """The board without a Redis: what is on it, and how many commands that took."""

    def __init__(self) -> None:
        self.commands: Counter[str] = Counter()
        self.news_bytes = Counter[str]()  # written, and read
        self._news: deque[News] = deque(maxlen=NEWS_KEPT)
        self._written = 0
        self._speeds: dict[str, bytes] = {}

    def look(self, after: str, own: bytes) -> BoardState:
        """See what has come after the news `after`, and tell `own`, as the live board's script does."""
        self.commands["looks"] += 1
        read = [one for one in self._news if _number(one) > int(after.partition("-")[0])]
        self.news_bytes["read"] += sum(len(one.text) for one in read)
        if own:
            self._written += 1
            self._news.append(News(f"{self._written}-0", own))
            self.news_bytes["written"] += len(own)
        return BoardState("", {}, None, news=read)

    async def write_speeds(self, speeds: Mapping[str, bytes]) -> None:
        self.commands["speeds written"] += 1
        self._speeds |= speeds

    async def speeds(self, names: Sequence[str]) -> dict[str, bytes]:
        self.commands["speeds read"] += 1
        return {name: self._speeds[name] for name in names if name in self._speeds}


def _number(one: News) -> int:
    return int(one.id.partition("-")[0])


@dataclass(slots=True)
class _Known:
    """A replica as a gateway has come to know it."""

    spec: ReplicaSpec
    state: ReplicaState
    heard: bool = True


@dataclass(slots=True)
class _KnownPool:
    prefixes: PrefixIndex
    members: dict[str, _Known] = field(default_factory=dict)


@dataclass(slots=True)
class _Peer:
    """A gateway among the others, as `SharedLearning` sees it."""

    gateway: SimulatedGateway
    clock: Callable[[], float]
    pools: dict[str, _KnownPool]
    learning: SharedLearning = field(init=False)


@dataclass(frozen=True, slots=True)
class SharedRun:
    """What one run measured.

    `crowded`: share of the requests that were sent to a replica to which another gateway had sent one within `UNAWARE`
    seconds; `imbalance`: mean over seconds of (largest - mean) / mean requests at a replica.
    """

    outcomes: Outcomes
    seconds: float  # until the last request ended
    crowded: float
    imbalance: float
    probes: int
    commands: Mapping[str, int]
    news_bytes: Mapping[str, int]


class SharedSimulation:
    """Gateways, the replicas that they have in common, one workload and one seed. A `Listener` of every replica."""

    def __init__(
        self,
        spec: SimulatedFleet,
        requests: Iterable[SimulatedRequest],
        gateways: int,
        seed: int = 0,
        sharing: SharingPace = AS_LIVE,
    ) -> None:
        """Prepare a run. Raises BadInput for a fleet that changes: who hears of that when is not simulated."""
        if spec.script or spec.autoscale is not None:
            raise BadInput("several gateways are simulated over a fleet that stays as it is")
        self._spec, self._sharing = spec, sharing
        self._rng = random.Random(f"gateways {seed}")
        self.clock = Clock()
        self.board = SimulatedBoard()
        self.outcomes = Outcomes()
        self._come = self._over = 0  # requests
        self._all_have_come = False
        self._feed = Feed(self.clock, self._counted(requests))
        self._feed.gateway = self
        self._sender: dict[str, SimulatedGateway] = {}  # by request
        self._last: dict[str, tuple[float, int]] = {}  # when a replica was sent something, and by whom
        self._sent = self._crowded = self._probes = 0
        self._imbalances: list[float] = []
        self._last_end = 0.0
        self.replicas = {
            f"r{n}": SimulatedReplica(f"r{n}", one.scheduler(), one.cost, self, stride=spec.stride)
            for n, one in enumerate(spec.replicas)
        }
        self._peers = [self._peer(number, seed) for number in range(gateways)]

    @property
    def gateways(self) -> list[SimulatedGateway]:
        return [peer.gateway for peer in self._peers]

    def run(self) -> SharedRun:
        """Run to the end of the last request."""
        self._feed.start()
        for peer in self._peers:
            if self._sharing.look is not None:
                self.clock.at(self._rng.random() * self._sharing.look, partial(self._look, peer))
            if self._sharing.probe is not None:
                for name in self.replicas:
                    self.clock.at(self._rng.random() * self._sharing.probe, partial(self._probe, peer, name))
        self.clock.at(1.0, self._measure)
        self.clock.run()
        for peer in self._peers:
            peer.gateway.give_up(self.clock.now)
        return SharedRun(
            self.outcomes,
            self._last_end,
            self._crowded / self._sent if self._sent else 0.0,
            sum(self._imbalances) / len(self._imbalances) if self._imbalances else 0.0,
            self._probes,
            self.board.commands,
            self.board.news_bytes,
        )

    # -- what happens ----------------------------------------------------------------------------------

    def arrive(self, request: SimulatedRequest, now: float) -> None:
        """Bring a request to one of the gateways, as a balancer of connections does: to whichever."""
        gateway = self._peers[0 if len(self._peers) == 1 else self._rng.randrange(len(self._peers))].gateway
        self._sender[request.id] = gateway
        gateway.arrive(request, now)

    def first_token(self, request: Request, now: float) -> None:
        self._sender[request.id].first_token(request, now)

    def tokens(self, request: Request, count: int, now: float) -> None:
        self._sender[request.id].tokens(request, count, now)

    def finished(self, request: Request, reason: FinishReason, now: float) -> None:
        self._sender[request.id].finished(request, reason, now)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every gateway's counters agree, and those of all with what the replicas have."""
        for gateway in self.gateways:
            gateway.check_integrity()
        for name, replica in self.replicas.items():
            sent = sum(gateway.states[name].requests for gateway in self.gateways)
            load = replica.scheduler.load()
            if sent != load.queued_requests + load.running_requests:
                raise AssertionError(f"{name} has other requests than the gateways have sent there")

    # -- what gateways hear of each other ----------------------------------------------------------------

    def _look(self, peer: _Peer, now: float) -> None:
        """Look at the board, as `Peers.look` does of what is learned."""
        assert self._sharing.look is not None
        learning = peer.learning
        seen = self.board.look(learning.read_to, learning.news())
        _at_once(learning.share(self.board, seen))
        self._again(self._sharing.look, partial(self._look, peer))

    def _probe(self, peer: _Peer, name: str, now: float) -> None:
        """Ask a replica how it is. One at which nothing happens is asked less often, as by `Watch`."""
        assert self._sharing.probe is not None
        self._probes += 1
        replica, state = self.replicas[name], peer.gateway.states[name]
        replica.tell(now)  # tokens that came by now have been seen
        peer.gateway.report(name, _report(replica, now), now)
        is_quiet = not (state.requests or state.others.queued_requests)
        pause = quiet_pause(self._sharing.probe, len(self.replicas)) if is_quiet else self._sharing.probe
        self._again(pause, partial(self._probe, peer, name))

    def _again(self, pause: float, happen: Callable[[float], None]) -> None:
        """Do it again after a while, not all in step; nothing once all requests are over."""
        if not self._is_over:
            self.clock.at(self.clock.now + pause * (0.9 + 0.2 * self._rng.random()), happen)

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._all_have_come and self._over + self._feed.left_out == self._come

    def _counted(self, requests: Iterable[SimulatedRequest]) -> Iterator[SimulatedRequest]:
        for request in requests:
            self._come += 1
            yield request
        self._all_have_come = True

    def _peer(self, number: int, seed: int) -> _Peer:
        spec, index = self._spec, PrefixIndex()
        own = f" {number}" if number else ""
        gateway = SimulatedGateway(
            make_policy(spec.policy, random.Random(f"policy {seed}{own}")),
            self.outcomes,
            queue=GatewayQueue(spec.queue),
            index=index if spec.prefix_index else None,
            block_size=spec.replicas[0].settings.block_size,
            sample=spec.sample,
            rng=random.Random(f"sample {seed}{own}"),
            ended=self._ended,
            moved=partial(self._moved, number),
        )
        pool = _KnownPool(index)
        for name, one in zip(self.replicas, spec.replicas, strict=True):
            state = ReplicaState(name, one.capacity, gateway.index)
            gateway.add_replica(self.replicas[name], state, 0.0)
            pool.members[name] = _Known(ReplicaSpec(name=name, kind="url", target=f"http://{name}"), state)
        peer = _Peer(gateway, lambda: self.clock.now, {MODEL: pool})
        peer.learning = SharedLearning(peer, _KEY, f"g{number}")
        return peer

    def _moved(self, number: int, replica: SimulatedReplica) -> None:
        """A gateway has sent something to a replica."""
        self.clock.watch(replica)
        now = self.clock.now
        at, by = self._last.get(replica.name, (-UNAWARE, number))
        self._sent += 1
        self._crowded += by != number and now - at < UNAWARE
        self._last[replica.name] = now, number

    def _ended(self, request: SimulatedRequest, outcome: Outcome, now: float) -> None:
        self._over += 1
        self._last_end = now
        self._sender.pop(request.id, None)
        self._feed.ended(request, outcome, now)

    def _measure(self, now: float) -> None:
        """See how evenly the requests are spread, once a second for as long as they come."""
        if self._all_have_come:
            return
        loads = [one.scheduler.load() for one in self.replicas.values()]
        there = [load.queued_requests + load.running_requests for load in loads]
        if mean := sum(there) / len(there):
            self._imbalances.append(max(there) / mean - 1.0)
        self.clock.at(now + 1.0, self._measure)


def _report(replica: SimulatedReplica, now: float) -> Report:
    """What a replica says of itself, as a gateway reads it in `/v1/load`; its speed was told before, or never is."""
    load = replica.load(now)
    return Report(
        now,
        queued_requests=load.queued_requests,
        running_requests=load.running_requests,
        queued_tokens=load.queued_tokens,
        running_tokens=load.running_tokens,
        kv_tokens_used=load.kv_blocks_used * load.block_size,
    )


def _at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing: a board of the simulation answers at once."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("the simulated board let somebody wait")
