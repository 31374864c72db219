"""`@step`: an async function with a declared effect, which a flow may start early, share, repeat or cancel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

from weighbridge.errors import BadInput, WeighbridgeError

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")

#: pure: depends on its arguments alone. read: looks at something, changes nothing. remote: reads, and
#: discloses its arguments to somebody else. undo: changes something and can take it back. write: changes.
Effect = Literal["pure", "read", "remote", "undo", "write"]

#: A value, or something that will be a value: how a step declares that it also takes promises.
In: TypeAlias = V | Awaitable[V]

_RANK: dict[str, int] = {"pure": 0, "read": 1, "remote": 2, "undo": 3, "write": 4}


class Caller(Protocol):
    """What a flow's body runs in: it turns calls of steps into promises."""

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]: ...


class RunningStep(Protocol):
    """An execution whose step function is running."""

    @property
    def step(self) -> Step[..., Any]: ...


#: The world a flow's body runs in; None outside flows and inside steps.
current_world: ContextVar[Caller | None] = ContextVar("weighbridge_flow_world", default=None)
#: The execution whose step function is running.
current_execution: ContextVar[RunningStep | None] = ContextVar("weighbridge_flow_execution", default=None)


class NotDone(WeighbridgeError):
    """Raised by a write to say that its effect did not happen, so that trying again is safe."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a step declares of itself. Seconds and US dollars."""

    effect: Effect = "write"
    timeout: float | None = None  # per attempt
    retries: int = 0
    hedge: float = 0.0  # share of calls that may be launched a second time
    cache: float | bool = False  # True: as long as the store lives; a number: that many seconds
    resource: str | None = None  # what it touches: effects are ordered, and limits set, by resource
    usd: float = 0.0  # declared price of a call; `charge` reports what it really was
    speculate: bool = True  # False: never before it is certain; for remote steps the default is False
    dedup: bool = True  # identical pure or read calls in flight are one call
    undo: Callable[[Any], Awaitable[None]] | None = None  # takes the result back
    settle: Callable[..., Awaitable[Any]] | None = None  # after a crash: the result, or raise NotDone
    retry_on: Callable[[Exception], bool] | None = None  # which errors are worth another attempt
    schema: dict[str, Any] | None = None  # JSON schema of its arguments; by default from its signature

    def check(self, name: str) -> None:
        """Raises BadInput naming the option that makes no sense."""
        if self.effect not in _RANK:
            raise BadInput(f"step {name}: effect={self.effect!r} must be one of {', '.join(_RANK)}")
        for option in ("timeout", "retries", "hedge", "usd"):
            value = getattr(self, option)
            if not isinstance(value, int if option == "retries" else int | float | None):
                raise BadInput(f"step {name}: {option}={value!r} must be a number")
        if self.timeout is not None and not self.timeout > 0:
            raise BadInput(f"step {name}: timeout={self.timeout} must be more than 0 seconds")
        if self.retries < 0:
            raise BadInput(f"step {name}: retries={self.retries} must not be negative")
        if not 0.0 <= self.hedge <= 1.0:
            raise BadInput(f"step {name}: hedge={self.hedge} is a share of calls, from 0 to 1")
        if self.usd < 0.0:
            raise BadInput(f"step {name}: usd={self.usd} must not be negative")
        if self.writes and (self.hedge or self.cache):
            raise BadInput(f"step {name}: a step with effect={self.effect!r} is never hedged or cached")
        if (self.effect == "undo") != (self.undo is not None):
            raise BadInput(f"step {name}: effect='undo' and undo=function belong together; give both")

    @property
    def writes(self) -> bool:
        return self.effect in ("undo", "write")


class Step(Generic[P, T]):
    """An async function known to flows. Outside a flow a call is the function's ordinary coroutine."""

    def __init__(
        self, function: Callable[P, Awaitable[T]], options: Options, name: str | None = None
    ) -> None:
        self.function = function
        self.options = options
        self.name: str = name or str(getattr(function, "__qualname__", repr(function)))
        self.name = self.name.rsplit("<locals>.", 1)[-1]
        options.check(self.name)
        if not inspect.iscoroutinefunction(inspect.unwrap(function)):
            hint = "make it `async def`, with blocking code under `await asyncio.to_thread(...)`"
            raise BadInput(f"step {self.name}: a step must be an async function; {hint}")
        functools.update_wrapper(self, function)
        self.writes = options.writes
        self.__flow_key__ = ("step", self.name)
        self._signature: inspect.Signature | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        world = current_world.get()
        if world is not None:
            return cast(Awaitable[T], world.call(self, args, kwargs))
        outer = current_execution.get()
        if outer is not None:
            self._check_nesting(outer.step)
        return self.function(*args, **kwargs)

    def _check_nesting(self, outer: Step[Any, Any]) -> None:
        """A step may only hide effects that it declares."""
        if _RANK[self.options.effect] > _RANK[outer.options.effect]:
            raise BadInput(
                f"step {outer.name} (effect {outer.options.effect!r}) calls {self.name} "
                f"(effect {self.options.effect!r}); declare effect={self.options.effect!r} on {outer.name} too"
            )

    def positional(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call with as few keyword arguments as possible, so that f(1) and f(x=1) are the same call.

        Raises TypeError as the call itself would.
        """
        if self._signature is None:
            self._signature = inspect.signature(self.function)
        bound = self._signature.bind(*args, **kwargs)
        return bound.args, bound.kwargs

    @property
    def may_speculate(self) -> bool:
        """Whether it may start before the flow is certain to need it."""
        return self.options.speculate and not self.writes

    def __repr__(self) -> str:
        return f"<step {self.name} {self.options.effect}>"


@overload
def step(function: Callable[P, Awaitable[T]], /) -> Step[P, T]: ...


@overload
def step(
    *,
    effect: Effect = ...,
    timeout: float | None = ...,
    retries: int = ...,
    hedge: float = ...,
    cache: float | bool = ...,
    resource: str | None = ...,
    usd: float = ...,
    speculate: bool | None = ...,
    dedup: bool = ...,
    undo: Callable[[T], Awaitable[None]] | None = ...,
    settle: Callable[..., Awaitable[T]] | None = ...,
    name: str | None = ...,
) -> Callable[[Callable[P, Awaitable[T]]], Step[P, T]]: ...


def step(
    function: Callable[..., Awaitable[Any]] | None = None,
    /,
    *,
    effect: Effect = "write",
    speculate: bool | None = None,
    name: str | None = None,
    **options: Any,
) -> Any:
    """Declare a step. Without an effect it is a `write`: never early, never twice, never out of order.

    `effect`: pure, read, remote, undo or write (see `Effect`). `timeout`: seconds per attempt. `retries`:
    further attempts after an error; a write is tried again only when it raises `NotDone`. `hedge`: share of
    calls that may be launched a second time when they are slow. `cache`: keep results between runs, True or
    seconds. `resource`: what the step touches; writes are ordered with reads and writes of the same
    resource, and `@flow(limits=...)` bounds how many run at once. `usd`: its price per call. `speculate`:
    let a `remote` step start early (what was sent cannot be unsent), or keep any other step from it.
    `undo`: for effect="undo", an async function of the result that takes it back when the flow fails.
    `settle`: for writes of journaled flows, asked after a crash with the call's arguments whether the
    effect happened: it returns the result, or raises `NotDone`.
    Raises BadInput when options contradict each other.
    """
    if isinstance(function, str):
        raise BadInput(f"step: write @step(effect={function!r}); options have names")
    unknown = options.keys() - {option.name for option in fields(Options)}
    if unknown:
        names = ", ".join(option.name for option in fields(Options))
        raise BadInput(f"step: there is no option {min(unknown)!r}; the options are {names}, name")
    if speculate is None:
        speculate = effect != "remote"
    settings = Options(effect=effect, speculate=speculate, **options)

    def decorate(target: Callable[..., Awaitable[Any]]) -> Step[..., Any]:
        return Step(target, settings, name)

    return decorate if function is None else decorate(function)
