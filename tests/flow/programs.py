"""Random flows: a small language, its plain sequential meaning, and the same thing as a flow body."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from weighbridge.flow import Several, guess, step
from weighbridge.flow.runtime import Execution
from weighbridge.flow.step import Step, current_execution

#: Wrong predictions are at least this much; whatever is computed from one is too.
TAINT = 1_000_000
RESOURCES = ("a", "b", None)


def mixed(*parts: Any) -> int:
    """A number from 0 to 9 that depends on all parts; tainted when one of them is."""
    tainted = any(isinstance(part, int) and part >= TAINT for part in parts)
    value = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()[0] % 10
    return value + (TAINT if tainted else 0)


class Failed(Exception):
    """A step of a random flow that raises."""


@dataclass
class Outside:
    """The world that steps act on."""

    state: dict[str | None, int] = field(default_factory=dict)
    log: list[tuple[Any, ...]] = field(default_factory=list)
    ran: list[tuple[Execution | None, tuple[Any, ...]]] = field(default_factory=list)

    def read(self, resource: str | None) -> int:
        if resource is None:
            return mixed(*sorted((str(k), v) for k, v in self.state.items()))
        return self.state.get(resource, 0)

    def write(self, resource: str | None, args: tuple[Any, ...]) -> int:
        value = mixed("write", resource, *args, self.state.get(resource, 0))
        if resource is None:
            self.state = {key: mixed(key, value) for key in ("a", "b", None)}
        else:
            self.state[resource] = value
        self.log.append((resource, args))
        return value

    def log_of(self, resource: str) -> list[tuple[Any, ...]]:
        """Writes that touched `resource`; one without a resource touches all."""
        return [entry for entry in self.log if entry[0] in (resource, None)]

    def act(self, effect: str, resource: str | None, salt: int, args: tuple[Any, ...]) -> int:
        """What a step does: may fail, depending on its arguments."""
        if mixed("fail", effect, salt, *args) % TAINT == 3 and salt % 4 == 0:
            raise Failed(f"{effect} {salt} {args}")
        if effect in ("write", "undo"):
            return self.write(resource, args)
        seen = self.read(resource) if effect != "pure" else 0
        return mixed(effect, salt, seen, *args)


Statement = tuple[Any, ...]


def statements(depth: int = 2) -> st.SearchStrategy[list[Statement]]:
    """Programs as nested tuples."""
    slot = st.integers(0, 3)
    effect = st.sampled_from(["pure", "pure", "read", "read", "remote", "write"])
    edge = st.sampled_from(["promise", "value", "guess"])
    argument = st.tuples(edge, slot)
    call = st.tuples(
        st.just("call"),
        slot,
        effect,
        st.sampled_from(RESOURCES),
        st.integers(0, 5),
        st.lists(argument, max_size=2).map(tuple),
    )
    simple = st.one_of(
        call,
        call,
        st.tuples(st.just("await"), slot),
        st.tuples(st.just("guess"), slot),
        st.tuples(st.just("try"), slot),
    )
    if depth == 0:
        return st.lists(simple, max_size=4)
    inner = st.deferred(lambda: statements(depth - 1))
    return st.lists(
        st.one_of(
            simple,
            simple,
            st.tuples(st.just("if"), slot, inner, inner),
            st.tuples(st.just("loop"), st.integers(1, 3), inner),
        ),
        max_size=6,
    )


class Settled:
    """What the sequential meaning keeps of a call: it ran at once, and raises when awaited."""

    def __init__(self, value: int = 0, error: Exception | None = None) -> None:
        self.value, self.error = value, error
        self.awaited = False

    def get(self) -> int:
        self.awaited = True
        return self.pass_on()

    def pass_on(self) -> int:
        """As an argument: an error reaches the call, but nobody awaited it."""
        if self.error is not None:
            raise self.error
        return self.value


def sequentially(program: list[Statement], outside: Outside) -> int:
    """Run `program` one call after the other. At the end a failed write that nobody awaited is raised."""
    slots: list[Settled] = [Settled(n) for n in range(4)]
    writes: list[Settled] = []

    def call(effect: str, resource: str | None, salt: int, args: tuple[Any, ...]) -> Settled:
        try:
            values = [slots[one].pass_on() for kind, one in args if kind != "value"]
        except Failed as error:
            return Settled(error=error)
        by_value = iter(values)
        given = tuple(slots[one].get() if kind == "value" else next(by_value) for kind, one in args)
        try:
            return Settled(outside.act(effect, resource, salt, given))
        except Failed as error:
            return Settled(error=error)

    def block(body: list[Statement]) -> None:
        for statement in body:
            match statement:
                case ("call", slot, effect, resource, salt, args):
                    for kind, one in args:
                        if kind == "value":
                            slots[one].get()
                    slots[slot] = call(effect, resource, salt, args)
                    if effect == "write":
                        writes.append(slots[slot])
                case ("await" | "guess", slot):
                    slots[slot].get()
                case ("try", slot):
                    try:
                        slots[slot].get()
                    except Failed:
                        slots[slot] = Settled(7)
                case ("if", slot, then, otherwise):
                    block(then if slots[slot].get() % 2 else otherwise)
                case ("loop", times, inner):
                    for _ in range(times):
                        block(inner)

    block(program)
    result = mixed(*[slot.get() for slot in slots])
    for write in writes:
        if not write.awaited:
            write.get()
    return result


async def _known(value: Any) -> int:
    return value if isinstance(value, int) else await value


def steps_on(outside: Outside, seconds: Callable[..., float]) -> dict[tuple[str, str | None], Step[Any, int]]:
    """One step per effect and resource."""

    def make(effect: str, resource: str | None) -> Step[Any, int]:
        async def act(salt: int, *args: int) -> int:
            execution = current_execution.get()
            duration = seconds(effect, salt, args)
            await asyncio.sleep(duration / 2)
            outside.ran.append((execution, args))
            try:
                return outside.act(effect, resource, salt, args)
            finally:
                await asyncio.sleep(duration / 2)

        options: dict[str, Any] = {"effect": effect, "resource": resource, "name": f"{effect}-{resource}"}
        return step(**options)(act)

    effects = ("pure", "read", "remote", "write")
    return {(effect, resource): make(effect, resource) for effect in effects for resource in RESOURCES}


async def as_flow(
    program: list[Statement],
    steps: dict[tuple[str, str | None], Step[Any, int]],
    predict: Callable[..., Several],
) -> int:
    """The same program over promises and guesses."""
    slots: list[Any] = [0, 1, 2, 3]

    def argument(kind: str, slot: int) -> Any:
        value = slots[slot]
        return guess(value, by=predict) if kind == "guess" and not isinstance(value, int) else value

    async def block(body: list[Statement]) -> None:
        for statement in body:
            match statement:
                case ("call", slot, effect, resource, salt, args):
                    values = []
                    for kind, one in args:
                        values.append(await _known(slots[one]) if kind == "value" else argument(kind, one))
                    slots[slot] = steps[effect, resource](salt, *values)
                case ("await", slot):
                    await _known(slots[slot])
                case ("guess", slot):
                    if not isinstance(slots[slot], int):
                        slots[slot] = await guess(slots[slot], by=predict)
                case ("try", slot):
                    try:
                        await _known(slots[slot])
                    except Failed:
                        slots[slot] = 7
                case ("if", slot, then, otherwise):
                    await block(then if await _known(slots[slot]) % 2 else otherwise)
                case ("loop", times, inner):
                    for _ in range(times):
                        await block(inner)

    await block(program)
    return mixed(*[await _known(slot) for slot in slots])
