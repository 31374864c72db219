"""A shadow: the body run ahead with a guessed value, starting only what may be undone by forgetting it."""

from __future__ import annotations

import asyncio
from typing import Any

from weighbridge.errors import WeighbridgeError
from weighbridge.flow.runtime import Execution, Promise, World
from weighbridge.flow.step import current_world


class ShadowWorld(World):
    """Runs the body ahead with a guessed value. Starts only what may be undone by forgetting it."""

    committed = False
    reported = False

    def __init__(self, parent: World, number: int, value: Any, odds: float) -> None:
        super().__init__(parent.run)
        self._parent = parent
        self._odds = odds
        self.assumed = {**parent.assumed, number: value}
        self.launched: list[Execution] = []
        self.began = self.run.clock()
        self.parked_at: float | None = None  # since when it cannot go on without being confirmed
        self._withheld: set[Promise[Any]] = set()  # calls that wait for confirmation
        self._body: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._body = self.run.nursery.spawn(self._run())

    async def _run(self) -> None:
        current_world.set(self)
        try:
            await self.run.body()
        except Exception:
            pass  # a wrong guess may lead a body anywhere; only the committed world reports
        finally:
            self.park()

    def park(self) -> None:
        if self.parked_at is None:
            self.parked_at = self.run.clock()

    @property
    def active_seconds(self) -> float:
        """How long it could work ahead so far."""
        return (self.run.clock() if self.parked_at is None else self.parked_at) - self.began

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
        """A write that the committed world has called is the same here; any other waits for ever."""
        real = self.run.committed.writes
        position = len(self.writes)
        self.writes.append(promise)
        if position < len(real) and real[position].number == promise.number:
            real[position].on_settled(lambda write: promise.settle(write._value, write.error))
        else:
            self._withheld.add(promise)

    def launch(self, promise: Promise[Any], execution: Execution) -> None:
        self.launched.append(execution)
        super().launch(promise, execution)

    def refused(self, promise: Promise[Any], refusal: WeighbridgeError) -> None:
        self._withheld.add(promise)

    def kill(self) -> float:
        """Stop it and all that only it wanted. Returns the dollars that were spent for nothing."""
        if not self.alive:
            return 0.0
        self.park()
        for bet in self.bets.values():
            bet.give_up()
        self.abandon()
        if self._body is not None:
            self._body.cancel()
        return sum(own.span.usd for own in self.launched if own.span is not None and not own.committed)

    def merge_into(self, world: World) -> None:
        """The guess was right: `world` takes over what runs, and the bets placed meanwhile."""
        self.park()
        self.alive = False
        self.committed, self._parent = world.committed, world
        for promise in self.handles:
            promise.inherited = True
            if world.committed and promise.execution is not None:
                promise.execution.commit()
        world.absorbed = [shadow for shadow in world.absorbed if shadow.handles or shadow.absorbed]
        world.absorbed.append(self)
        if isinstance(world, ShadowWorld):
            world.launched += self.launched
        for number, bet in self.bets.items():
            bet.move_to(world, number)
        if self._body is not None:
            self._body.cancel()

    @property
    def probability(self) -> float:
        return self._odds * self._parent.probability if self.alive else self._parent.probability
