"""What happens in a run, and who hears of it.

The runtime knows hooks and nothing else: the journal, the cache, the record, the learner, bets and telemetry are hooks
of a run, told in their order. Hooks see promises, executions and runs through the views below.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from weighbridge.flow.step import Step

H = TypeVar("H", bound="Hook")
GoOn = Callable[[], None]


@dataclass(slots=True)
class StepSpan:
    """One execution. Times are seconds since the run began, None until they come."""

    name: str
    effect: str
    called: float
    started: float | None = None
    finished: float | None = None
    bet: bool = False  # launched before it was certain to be needed
    committed: bool = False  # the committed world used it
    error: str | None = None
    cancelled: bool = False
    cached: bool = False
    hedged: bool = False
    critical: bool = False
    usd: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it ran."""
        if self.started is None or self.finished is None:
            return 0.0
        return self.finished - self.started

    @property
    def status(self) -> str:
        if self.error is not None:
            return "failed"
        if self.cancelled:
            return "cancelled"
        return "committed" if self.committed else "shadow"

    @property
    def wasted(self) -> bool:
        """Whether it ran for nothing: a bet that was lost or not needed, the loser of a race."""
        return self.cancelled or not self.committed


@dataclass(slots=True)
class Join:
    """The body awaited `call` after everything in `before`."""

    before: Join | None
    call: CallView


class RunView(Protocol):
    """A run as hooks see it."""

    name: str  # of the flow
    run_id: str
    usd: float  # spent so far
    resumed: int  # results that an earlier life of the run had left
    error: str | None  # why it failed
    diverged: Any  # set by a hook: the run ends with this error, and undoes nothing

    def now(self) -> float:
        """Return the seconds since the run began."""
        ...

    def in_body(self) -> bool:
        """Tell whether the code that runs now is the body itself, not a task that it has made."""
        ...

    @property
    def clock(self) -> Callable[[], float]: ...

    @property
    def frontier(self) -> Join | None:
        """What the body has awaited so far."""
        ...

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call back in a while, if the run still goes on then."""
        ...

    def hook(self, kind: type[H]) -> H | None:
        """Return the run's hook of this kind."""
        ...


class ExecutionView(Protocol):
    """One run of a step's function as hooks see it."""

    journal_key: str | None
    in_doubt: bool  # a write that may have happened before a crash
    undone: bool  # what it did has been taken back

    @property
    def run(self) -> RunView: ...

    @property
    def step(self) -> Step[..., Any]: ...

    @property
    def key(self) -> Hashable:
        """Name, frozen arguments, writes before it, and the path of its world: equal calls have equal keys."""
        ...

    @property
    def span(self) -> StepSpan | None:
        """None for an execution that did not run because its result was known."""
        ...

    @property
    def value(self) -> Any: ...

    @property
    def error(self) -> BaseException | None: ...

    def finish_with(self, value: Any, error: BaseException | None = None) -> None:
        """Give it its result, or its error, without running it."""
        ...


class CallView(Protocol):
    """A promise of the committed body as hooks see it."""

    @property
    def run(self) -> RunView: ...

    @property
    def step(self) -> Step[..., Any]: ...

    @property
    def number(self) -> int:
        """The same number names the same call in every world of the run."""
        ...

    @property
    def identity(self) -> Any: ...

    @property
    def occurrence(self) -> int: ...

    @property
    def deps(self) -> tuple[CallView, ...]: ...

    @property
    def frontier(self) -> Join | None: ...

    @property
    def execution(self) -> ExecutionView | None: ...

    @property
    def error(self) -> BaseException | None: ...

    def result(self) -> Any: ...


class Hook:
    """Hears what happens in a run. Every method does nothing unless it is overridden."""

    def called(self, call: CallView) -> None:
        """The committed body has called a step, or combined calls into one."""

    def recall(self, call: CallView, execution: ExecutionView) -> bool:
        """Tell whether a call of the committed body had ended in an earlier life of the run.

        If so, `execution.finish_with` gets its result. Asked before any running execution is shared.
        """
        return False

    def started(self, call: CallView, execution: ExecutionView) -> None:
        """An execution is about to start, in whatever world.

        A hook that knows the result hands it to `execution.finish_with`; a hook that must not let it start raises
        WeighbridgeError. Either way it does not run, and the hooks behind this one are not told.
        """

    def finished(self, execution: ExecutionView) -> None:
        """An execution has ended, well or badly."""

    def settled(self, call: CallView) -> None:
        """A call of the committed body has its result or error, which nobody has seen yet.

        A WeighbridgeError raised here becomes the call's error.
        """

    def hold_start(self, call: CallView, go_on: GoOn) -> bool:
        """Tell whether a call whose arguments are there must wait; then the hook calls `go_on` when it may start."""
        return False

    def hold_result(self, call: CallView, error: BaseException | None, go_on: GoOn) -> bool:
        """Tell whether the flow must wait for a result that is there; then the hook calls `go_on` when it may see it.

        Asked before `settled`. `error`: what the call ended with, None for a value.
        """
        return False

    def awaited(self, call: CallView) -> None:
        """The committed body has seen the result or error of a call that it awaited."""

    def undone(self, call: CallView) -> None:
        """What a call did has been taken back, because the flow failed."""

    def ended(self, run: RunView) -> None:
        """The run is over, and nothing of it goes on."""


class Hooks:
    """The hooks of a run, by event: an event reaches only those that listen to it."""

    __slots__ = (
        "awaited",
        "called",
        "ended",
        "every",
        "finished",
        "hold_result",
        "hold_start",
        "recall",
        "settled",
        "started",
        "undone",
    )

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self.every = tuple(hooks)
        self.called: tuple[Callable[[CallView], None], ...] = self._listening("called")
        self.recall: tuple[Callable[[CallView, ExecutionView], bool], ...] = self._listening("recall")
        self.hold_start: tuple[Callable[[CallView, GoOn], bool], ...] = self._listening("hold_start")
        self.hold_result: tuple[Callable[[CallView, BaseException | None, GoOn], bool], ...]
        self.hold_result = self._listening("hold_result")
        self.awaited: tuple[Callable[[CallView], None], ...] = self._listening("awaited")
        self.started: tuple[Callable[[CallView, ExecutionView], None], ...] = self._listening("started")
        self.finished: tuple[Callable[[ExecutionView], None], ...] = self._listening("finished")
        self.settled: tuple[Callable[[CallView], None], ...] = self._listening("settled")
        self.undone: tuple[Callable[[CallView], None], ...] = self._listening("undone")
        self.ended: tuple[Callable[[RunView], None], ...] = self._listening("ended")

    def _listening(self, event: str) -> tuple[Any, ...]:
        silent = getattr(Hook, event)
        return tuple(getattr(hook, event) for hook in self.every if getattr(type(hook), event) is not silent)
