"""Discrete events: arrivals, iterations that end, scripted failures, in the order of a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import heappop, heappush
from itertools import count, islice
from typing import Protocol

from weighbridge.simulator.replica import SimulatedReplica
from weighbridge.workload.outcomes import Outcome
from weighbridge.workload.requests import SimulatedRequest

#: What happens first of what happens at the same time: iterations end, then the script, then requests arrive,
#: then idle replicas begin.
_ITERATION, _SCRIPT, _ARRIVAL, _WAKE = range(4)


class Clock:
    """The events ahead, by time. Nothing moves but by `run`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, int, object]] = []
        self._numbers = count()

    def at(self, time: float, happen: Callable[[float], None]) -> None:
        """Call `happen` with the time when it has come."""
        heappush(self._events, (max(time, self.now), _SCRIPT, next(self._numbers), happen))

    def arrive(self, time: float, happen: Callable[[float], None]) -> None:
        heappush(self._events, (max(time, self.now), _ARRIVAL, next(self._numbers), happen))

    def watch(self, replica: SimulatedReplica) -> None:
        """Take note that `replica` has a new next event. Its old ones are passed over when they come up."""
        time = replica.next_event
        if time is not None:
            rank = _ITERATION if replica.computing else _WAKE
            heappush(self._events, (time, rank, next(self._numbers), replica))

    @property
    def pending(self) -> bool:
        """Return whether anything is still to happen."""
        return any(not isinstance(e, SimulatedReplica) or e.next_event == at for at, _, _, e in self._events)

    def run(self, until: float | None = None) -> None:
        """Run until nothing is left to happen, or the clock has reached `until`."""
        events = self._events
        while events and (until is None or events[0][0] <= until):
            time, _, _, event = heappop(events)
            if isinstance(event, SimulatedReplica):
                if event.next_event != time:
                    continue  # it was interrupted and has other plans
                self.now = time
                event.fire(time)
                self.watch(event)
            else:
                self.now = time
                event(time)  # type: ignore[operator]
        if until is not None:
            self.now = max(self.now, until)


class Entrance(Protocol):
    """Where requests arrive."""

    def arrive(self, request: SimulatedRequest, now: float) -> None: ...


class Feed:
    """Brings the requests of a workload to the gateway: each at its time, or after the one it follows.

    `clients`: a closed loop instead. So many requests at once, and another after each that ended; all of them
    `pause()` seconds late.
    """

    def __init__(
        self,
        clock: Clock,
        requests: Iterable[SimulatedRequest],
        clients: int | None = None,
        pause: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._pause = pause
        self._coming: Iterator[SimulatedRequest] = iter(requests)
        self._followers: dict[str, list[SimulatedRequest]] = {}
        self._ended: set[str] = set()
        self.gateway: Entrance | None = None
        self.left_out = 0  # requests that follow one which failed

    def start(self) -> None:
        if self._clients is None:
            self._next()
            return
        for request in islice(self._coming, self._clients):
            self._clock.arrive(self._pause(), partial(self._follow, request))

    def _next(self) -> None:
        for request in self._coming:
            if request.follows is None:
                self._clock.arrive(request.at, partial(self._arrive, request))
                return
            self._followers.setdefault(request.follows, []).append(request)

    def _arrive(self, request: SimulatedRequest, now: float) -> None:
        assert self.gateway is not None
        self._next()
        self.gateway.arrive(request, now)

    def _follow(self, request: SimulatedRequest, now: float) -> None:
        assert self.gateway is not None
        self.gateway.arrive(request, now)

    def ended(self, request: SimulatedRequest, outcome: Outcome, now: float) -> None:
        """Take note that `request` is over: what follows it comes after a while, unless it failed."""
        if self._clients is not None:
            for following in islice(self._coming, 1):
                self._clock.arrive(now + self._pause(), partial(self._follow, following))
            return
        for follower in self._followers.pop(request.id, ()):
            if outcome.error:
                self._leave_out(follower)
            else:
                self._clock.arrive(now + follower.think, partial(self._follow, follower))

    def _leave_out(self, request: SimulatedRequest) -> None:
        self.left_out += 1
        for follower in self._followers.pop(request.id, ()):
            self._leave_out(follower)
