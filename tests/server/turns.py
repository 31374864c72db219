"""What one turn of an event loop, or of the engine's thread, takes in CPU time: whatever else the machine is doing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from weighbridge.engine.api import EngineStep
from weighbridge.engine.build import EngineReplica
from weighbridge.ticket import Ticket


@dataclass
class Turns:
    """The longest turn of each thread since `clear`, in seconds of its own CPU time, and what it was."""

    names: dict[int, str] = field(default_factory=dict)  # of the threads that are looked at
    longest: dict[str, tuple[float, str]] = field(default_factory=dict)

    def clear(self) -> None:
        self.longest.clear()

    def note(self, seconds: float, what: Callable[[], str]) -> None:
        name = self.names.get(threading.get_ident())
        if name is not None and seconds > self.longest.get(name, (0.0, ""))[0]:
            self.longest[name] = (seconds, what())

    @contextmanager
    def of_loops(self) -> Iterator[None]:
        """Look at every callback of every event loop of asyncio's own."""
        run = asyncio.Handle._run  # type: ignore[attr-defined]

        def timed(handle: Any) -> None:
            began = time.thread_time()
            run(handle)
            self.note(time.thread_time() - began, lambda: repr(handle))

        asyncio.Handle._run = timed  # type: ignore[attr-defined]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[attr-defined]

    def of_engine(self, replica: EngineReplica) -> EngineTurns:
        """Look at every iteration of a replica, but for the model's own time."""
        return EngineTurns(self, replica)


class EngineTurns:
    """An observer of one engine: what its thread does in each iteration beside computing the model, part by part."""

    def __init__(self, turns: Turns, replica: EngineReplica) -> None:
        self._turns = turns
        self._since: float | None = None
        self._parts: Counter[str] = Counter()  # seconds in this iteration
        loop = replica.engine._loop
        self._time("model", replica.decoder, "forward")
        self._time("scheduling", loop._scheduler, "schedule")
        self._time("accounting", loop._scheduler, "update")
        self._time("sampling and masks", loop._runner._sampler, "sample")  # type: ignore[attr-defined]
        self._time("text and delivery", loop, "_deliver")
        replica.engine.observers.append(self)

    def on_turn(self, seconds: float) -> None:
        now, parts = time.thread_time(), self._parts
        if self._since is None:
            self._turns.names[threading.get_ident()] = "step"
        else:
            own = now - self._since - parts.pop("model", 0.0)
            parts["the rest"] = own - parts.total()
            self._turns.note(
                own, lambda: ", ".join(f"{name} {1e3 * took:.1f} ms" for name, took in parts.items())
            )
        self._since, self._parts = now, Counter()

    def on_step(self, step: EngineStep) -> None: ...

    def on_finished(self, ticket: Ticket) -> None: ...

    def _time(self, part: str, owner: Any, name: str) -> None:
        """Take the CPU time of every call of a method."""
        call = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self._parts[part] += time.thread_time() - began

        setattr(owner, name, timed)
