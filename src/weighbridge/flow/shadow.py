"""A shadow: the body run ahead with a value guessed, starting only what may be undone by forgetting it."""

from __future__ import annotations

import asyncio
from typing import Any

from weighbridge.flow.execution import Execution
from weighbridge.flow.promise import Promise
from weighbridge.flow.step import current_world
from weighbridge.flow.world import World


class Shadow(World):
    """Runs the body ahead with a value guessed. Starts only what may be undone by forgetting it."""

    committed = False

    def __init__(self, parent: World, number: int, value: Any, odds: float) -> None:
        super().__init__(parent.run)
        self._parent = parent
        self._odds = odds
        self.assumed = {**parent.assumed, number: value}
        self.claimed: list[Execution] = []
        self.began = self.run.clock()
        self.parked: float | None = None  # since when it cannot go on without being confirmed
        self._withheld: set[Promise[Any]] = set()  # calls that wait for confirmation
        self._body: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.run.shadows += 1
        self._body = self.run.spawn(self._run())

    async def _run(self) -> None:
        current_world.set(self)
        try:
            await self.run.body()
        except Exception:
            pass  # a wrong guess may lead a body anywhere; only the committed world reports
        finally:
            self.park()

    def recalled(self, *_: Any) -> None:
        """The journal is of the committed world."""

    def park(self) -> None:
        if self.parked is None:
            self.parked = self.run.clock()

    @property
    def active_seconds(self) -> float:
        """How long it could work ahead so far."""
        return (self.run.clock() if self.parked is None else self.parked) - self.began

    def called(self, promise: Promise[Any]) -> None:
        step = promise.step
        if step.writes:
            self._mirror_write(promise)
        elif step.may_speculate:
            self.arm(promise)
        else:
            self._withheld.add(promise)

    def blocked(self, promise: Promise[Any]) -> None:
        if promise in self._withheld:
            self.park()

    def _mirror_write(self, promise: Promise[Any]) -> None:
        """A write that the committed world has called is the same one here; any other waits for ever."""
        real = self.run.committed.writes
        position = len(self.writes)
        self.writes.append(promise)
        if position < len(real) and real[position].number == promise.number:
            real[position].on_settled(lambda one: promise.settle(one._value, one.error))
        else:
            self._withheld.add(promise)

    def launch(self, promise: Promise[Any], execution: Execution) -> None:
        run = self.run
        if run.cached(execution):
            execution.claim(promise)
        elif not run.waste_left(promise.step.options.usd):
            self.run.executions[execution.key].remove(execution)
            self._withheld.add(promise)
        else:
            self.claimed.append(execution)
            execution.claim(promise)
            execution.start()

    def kill(self) -> float:
        """Stop it and all that only it wanted. Returns the dollars that were spent for nothing."""
        if not self.alive:
            return 0.0
        self.park()
        self.run.shadows -= 1
        for bet in self.bets.values():
            bet.give_up()
        self.abandon()
        if self._body is not None:
            self._body.cancel()
        return sum(one.span.usd for one in self.claimed if one.span is not None and not one.committed)

    def merge_into(self, world: World) -> None:
        """The guess was right: `world` takes over what runs, and the bets placed meanwhile."""
        self.park()
        self.alive = False
        self.run.shadows -= 1
        self.committed, self._parent = world.committed, world
        for promise in self.handles:
            promise.inherited = True
            if world.committed and promise.execution is not None:
                promise.execution.commit()
        world.absorbed = [one for one in world.absorbed if one.handles or one.absorbed]
        world.absorbed.append(self)
        if isinstance(world, Shadow):
            world.claimed += self.claimed
        for number, bet in self.bets.items():
            bet.move_to(world, number)
        if self._body is not None:
            self._body.cancel()

    @property
    def probability(self) -> float:
        return self._odds * self._parent.probability if self.alive else self._parent.probability
