"""Models that take seconds to load and requests that take seconds to answer, under a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from weighbridge.errors import Refused
from weighbridge.fleet.on_demand.occupancy import ModelNeeds, Occupancy, OccupancyRules, Presence, Visit


@dataclass(frozen=True)
class Request:
    """`at`: when it comes; `seconds`: what it takes inside its model; `patience`: when its client goes away."""

    at: float
    model: str
    seconds: float
    deadline: float | None = None
    patience: float | None = None


@dataclass
class World:
    """One machine. `load_s`, `unload_s`: seconds by model; `fails`: whether the n-th load of a model does."""

    models: Sequence[ModelNeeds]
    rules: OccupancyRules
    load_s: dict[str, float]
    unload_s: float = 0.2
    fails: Callable[[str, int], bool] = lambda name, load: False
    served: dict[str, float] = field(default_factory=dict)  # seconds from arrival to end
    refused: dict[str, Refused] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    waited: float = 0.0  # seconds that requests waited for their models, together
    loads: int = 0
    switches: int = 0  # unloads for somebody else
    peak: int = 0  # bytes
    now: float = 0.0

    def __post_init__(self) -> None:
        self.occupancy = Occupancy(self.models, self.rules)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._since: dict[str, Request] = {}
        self._tries: dict[str, int] = {}

    def at(self, when: float, what: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._order), what))

    def run(self, requests: Sequence[Request]) -> World:
        for index, one in enumerate(requests):
            self.at(one.at, lambda name=f"r{index}", one=one: self._arrive(name, one))  # type: ignore[misc]
        looked = None
        while self._events or self._is_busy():
            look = self.occupancy.next_look()
            when = self._events[0][0] if self._events else math.inf
            if look < when and look != looked:
                self.now, looked = max(look, self.now), look
            else:
                assert self._events, f"nothing will ever happen, and there is work: {self.occupancy.models}"
                self.now, _, what = heappop(self._events)
                what()
            self._step()
        return self

    def _is_busy(self) -> bool:
        return any(one.is_busy for one in self.occupancy.models)

    def _step(self) -> None:
        step = self.occupancy.step(self.now)
        self.occupancy.check_integrity()
        self.peak = max(self.peak, self.occupancy.taken)
        for name in step.unloads:
            model = self.occupancy.model(name)
            assert not model.inside, "unloaded with work"
            self.switches += model.closed_for is not None
            self.at(self.now + self.unload_s, lambda name=name: self.occupancy.unloaded(name))  # type: ignore[misc]
        for name in step.loads:
            self.loads += 1
            self._tries[name] = self._tries.get(name, 0) + 1
            failing = self.fails(name, self._tries[name])
            ended = self._failed if failing else self._loaded
            self.at(self.now + self.load_s[name], lambda name=name, ended=ended: ended(name))  # type: ignore[misc]
        for one in step.admitted:
            assert self.occupancy.model(one.model).presence is Presence.LOADED
            self.waited += one.waited
            self._begin(one.id)
        for _, name, error in step.refused:
            self.waited += self.now - self._since[name].at
            self.refused[name] = error

    def _loaded(self, name: str) -> None:
        self.occupancy.loaded(name, self.now)

    def _failed(self, name: str) -> None:
        self.occupancy.failed(name, "no such file", self.now)

    def _arrive(self, name: str, request: Request) -> None:
        self._since[name] = request
        visit = Visit(name, request.seconds, self.now, request.deadline)
        try:
            if self.occupancy.enter(request.model, visit, self.now):
                self._begin(name)
            elif request.patience is not None:
                self.at(self.now + request.patience, lambda: self._lose_patience(name))
        except Refused as error:
            self.refused[name] = error

    def _begin(self, name: str) -> None:
        self.at(self.now + self._since[name].seconds, lambda: self._end(name))

    def _end(self, name: str) -> None:
        request = self._since[name]
        self.served[name] = self.now - request.at
        self.occupancy.leave(request.model, name, self.now)

    def _lose_patience(self, name: str) -> None:
        request = self._since[name]
        if name in self.occupancy.model(request.model).waiting:
            self.left.add(name)
            self.waited += self.now - request.at
            self.occupancy.leave(request.model, name, self.now)
