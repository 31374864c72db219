"""Models of a gateway that are loaded when somebody asks for them: what `occupancy` decides, done.

Each model is its pool's replicas, added when it is loaded and removed when it is unloaded. A request waits here before
it looks for a replica (`Pool.on_demand`), with its keep-alives and its deadline as anywhere else.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from weighbridge.errors import Draining, WeighbridgeError, some_of
from weighbridge.fleet.api import Arrival
from weighbridge.fleet.config.difference import expanded
from weighbridge.fleet.config.on_demand import OnDemandSettings
from weighbridge.fleet.config.spec import QueueSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.on_demand.occupancy import (
    Admitted,
    LoadFailed,
    ModelNeeds,
    Occupancy,
    OccupancyRules,
    Occupant,
    Presence,
    Visit,
)
from weighbridge.fleet.pool import Pool
from weighbridge.knobs import bytes_text

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two looks at whether the replicas of a model that is being loaded answer.
LOOK = 0.05


@runtime_checkable
class Ends(Protocol):
    """A replica that may end by itself, such as a process."""

    async def ended(self) -> str:
        """Wait until it has, and say why in words."""
        ...


class PoolModel:
    """A model as replicas of its pool."""

    def __init__(self, pool: Pool, load_timeout: float) -> None:
        self._pool = pool
        self._timeout = load_timeout

    async def load(self) -> None:
        """Start its replicas and wait until all of them answer. Raises LoadFailed; then none is left."""
        members = [self._pool.add(one) for spec in self._pool.spec.replicas for one in expanded(spec)]
        ends = asyncio.ensure_future(self.ended())
        try:
            async with asyncio.timeout(self._timeout):
                while not all(one.heard and one.state.healthy for one in members):
                    if ends.done():
                        raise LoadFailed(ends.result())
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            await self.unload()
            raise LoadFailed(f"it was not ready within {self._timeout:g} s (`load_timeout`)") from None
        except LoadFailed:
            await self.unload()
            raise
        finally:
            ends.cancel()
        for one in members:
            one.state.slow_start = 0.0  # nobody else could have what it leaves while it warms up

    async def unload(self) -> None:
        """End its replicas; their memory is free when this returns."""
        for name in list(self._pool.members):
            await self._pool.remove(name, 0.0)

    async def ended(self) -> str:
        """Wait until one of its replicas has ended by itself, and say why."""
        ending = [
            asyncio.ensure_future(member.replica.ended())
            for member in self._pool.members.values()
            if isinstance(member.replica, Ends)
        ]
        if not ending:
            await asyncio.Event().wait()
        try:
            done, _ = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for one in ending:
                one.cancel()


class Residents:
    """Loads and unloads the models of a gateway that have `needs`. It begins with `start` and ends with `close`."""

    def __init__(
        self, gateway: Gateway, settings: OnDemandSettings, needs: Sequence[ModelNeeds], memory: int
    ) -> None:
        """`memory`: bytes for all of them together."""
        self.clock = gateway.clock
        self.occupancy = Occupancy(needs, rules_of(settings, gateway.spec.queue, memory), self.clock())
        self._models = {one.name: PoolModel(gateway.pools[one.name], settings.load_timeout) for one in needs}
        for name in self._models:
            gateway.pools[name].on_demand = ModelOnDemand(self, name)
        self._places: dict[tuple[str, str], asyncio.Future[Admitted]] = {}  # by model and request
        self._tasks: dict[str, asyncio.Task[None]] = {}  # what is done about each model now
        self._news = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Load and unload nothing any more; the gateway ends what runs."""
        running = [*([self._keeper] if self._keeper is not None else []), *self._tasks.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for place in self._places.values():
            if not place.done():
                place.set_exception(Draining("the gateway is going down; try another one"))

    # -- requests --------------------------------------------------------------------------------------

    async def enter(self, name: str, arrival: Arrival, deadline: float | None) -> Admitted | None:
        """Wait until a request may go to its model; None: at once. Raises Refused."""
        tokens = arrival.weight.expected_tokens
        visit = Visit(arrival.id, tokens, self.clock(), deadline, arrival.priority)
        if self.occupancy.enter(name, visit, visit.since):
            return None
        place: asyncio.Future[Admitted]
        place = self._places[name, arrival.id] = asyncio.get_running_loop().create_future()
        self._news.set()
        try:
            return await place
        except BaseException:
            self.leave(name, arrival.id, None)
            raise
        finally:
            self._places.pop((name, arrival.id), None)

    def leave(self, name: str, request_id: str, keep_alive: float | None) -> None:
        """A request has ended. `keep_alive`: seconds for which it wants its model to stay; None: it does not say."""
        self.occupancy.leave(name, request_id, self.clock())
        if keep_alive is not None:
            self.occupancy.stay(name, keep_alive)
        self._news.set()

    # -- operators -------------------------------------------------------------------------------------

    async def load(self, name: str, wait_s: float = 0.0) -> Occupant:
        """Have a model loaded, and wait for at most so many seconds. Raises UnknownModel and Refused."""
        self.occupancy.want(name, self.clock())
        model = self.occupancy.model(name)
        return await self._wait(model, wait_s, lambda: model.wanted_since is not None or _is_moving(model))

    async def unload(self, name: str, wait_s: float = 0.0) -> Occupant:
        """Have a model unloaded once it has no work, and wait for at most so many seconds. Raises UnknownModel."""
        self.occupancy.unwant(name)
        model = self.occupancy.model(name)
        return await self._wait(model, wait_s, lambda: model.closed_for == name or _is_moving(model))

    async def touch(self, name: str, keep_alive: float | None, wait_s: float) -> None:
        """Load a model as a request for it would, or with a `keep_alive` of 0 let it go once it has no work."""
        if keep_alive != 0:
            await self.load(name, wait_s)
        if keep_alive is not None:
            self.occupancy.stay(name, keep_alive)
            self._news.set()

    async def _wait(self, model: Occupant, seconds: float, is_under_way: Callable[[], bool]) -> Occupant:
        self._news.set()
        until = self.clock() + seconds
        while is_under_way():
            if self.clock() >= until:
                break
            await asyncio.sleep(LOOK)
        return model

    # -- what is decided, done -------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._news.clear()
            now = self.clock()
            try:
                self._step(now)
            except Exception:
                log.exception("deciding which models are loaded failed")
            pause = self.occupancy.next_look() - now
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause == math.inf else max(pause, 0.001)):
                    await self._news.wait()

    def _step(self, now: float) -> None:
        step = self.occupancy.step(now)
        for name, request_id, error in step.refused:
            place = self._places.get((name, request_id))
            if place is not None and not place.done():
                place.set_exception(error)
        for one in step.admitted:
            place = self._places.get((one.model, one.id))
            if place is not None and not place.done():
                place.set_result(one)
        for name in step.unloads:
            self._do(name, self._unload(name))
        for name in step.loads:
            self._do(name, self._live(name))

    def _do(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin the next thing about a model, instead of watching it."""
        before = self._tasks.get(name)
        if before is not None:
            before.cancel()
        self._tasks[name] = asyncio.create_task(work)

    async def _live(self, name: str) -> None:
        """Load a model, and watch it until it is to be unloaded or ends by itself."""
        occupant, model = self.occupancy.model(name), self._models[name]
        for_whom = f", for which {some_of(occupant.displaced)} made room" if occupant.displaced else ""
        log.info("loading %s (%s)%s", name, bytes_text(occupant.needs.nbytes), for_whom)
        try:
            await model.load()
        except WeighbridgeError as error:
            self._failed(name, str(error))
            return
        except Exception as error:
            log.exception("loading %s failed", name)
            await model.unload()
            self._failed(name, repr(error))
            return
        self.occupancy.loaded(name, self.clock())
        log.info("%s is loaded, after %.1f s", name, self.clock() - occupant.began)
        self._news.set()
        why = await model.ended()
        failure_id = _failure_id()
        log.warning("%s is gone (failure %s): %s", name, failure_id, why)
        await model.unload()
        self.occupancy.gone(name, why, self.clock(), failure_id)
        self._news.set()

    def _failed(self, name: str, why: str) -> None:
        failure_id = _failure_id()
        log.warning("%s could not be loaded (failure %s): %s", name, failure_id, why)
        self.occupancy.failed(name, why, self.clock(), failure_id)
        self._news.set()

    async def _unload(self, name: str) -> None:
        occupant = self.occupancy.model(name)
        for_whom = occupant.closed_for if occupant.closed_for not in (None, name) else ""
        log.info("unloading %s%s", name, f", to make room for {for_whom}" if for_whom else "")
        try:
            await self._models[name].unload()
        except Exception:
            log.exception("unloading %s failed", name)
        self.occupancy.unloaded(name)
        self._news.set()


@dataclass(frozen=True, slots=True)
class ModelOnDemand:
    """One model of them, as its pool knows it."""

    residents: Residents
    model: str

    @property
    def is_hopeful(self) -> bool:
        """Whether a request has reason to wait for it: it is there, or is loaded once somebody asks."""
        return not self.residents.occupancy.model(self.model).is_failing(self.residents.clock())

    @property
    def expected_wait_s(self) -> float:
        """Seconds until it should be there, as loads took so far; who is in its place may make it longer."""
        return self.residents.occupancy.model(self.model).expected_wait(self.residents.clock())

    @property
    def is_ready(self) -> bool:
        """Whether it is where the configuration wants it: one that is kept is loaded."""
        model = self.residents.occupancy.model(self.model)
        return not model.needs.keep or model.presence is Presence.LOADED

    async def enter(self, arrival: Arrival, deadline: float | None) -> str:
        """Wait until the model is there; return what a ticket says of it, nothing where it was. Raises Refused."""
        admitted = await self.residents.enter(self.model, arrival, deadline)
        return "" if admitted is None else _waited(admitted)

    def leave(self, request_id: str, keep_alive: float | None) -> None:
        self.residents.leave(self.model, request_id, keep_alive)


def _failure_id() -> str:
    """What a failure is called where its reason is not told, so that the log's line of it is found."""
    return uuid.uuid4().hex[:8]


def _waited(one: Admitted) -> str:
    room = f"; {some_of(one.displaced)} made room for it" if one.displaced else ""
    return (
        f"waited {one.waited:.2f} s for {one.model} to be loaded, which took {one.load_seconds:.2f} s{room}"
    )


def _is_moving(model: Occupant) -> bool:
    return model.presence in (Presence.LOADING, Presence.UNLOADING)


def rules_of(settings: OnDemandSettings, queue: QueueSpec, memory: int) -> OccupancyRules:
    """Return the rules of a configuration; who waits for a model is bounded as who waits for a replica."""
    return OccupancyRules(
        memory=memory,
        hold=settings.hold,
        turn=settings.turn,
        max_waiting=queue.max_requests,
        max_waiting_tokens=queue.max_tokens,
        max_wait=queue.max_wait,
    )
