"""What happened in a run: every execution, every bet, and what waited for what. Plain data for reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from weighbridge.flow.bets.gate import BetVerdict, Node, critical_path

if TYPE_CHECKING:
    from weighbridge.flow.execution import Execution
    from weighbridge.flow.promise import Promise

Outcome = Literal["open", "won", "lost", "declined", "moot"]


@dataclass(slots=True)
class Span:
    """One execution. Times are seconds since the run began; None while it has not come to that."""

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
class BetRecord:
    """One hypothesis that was considered: what the gate said and what came of it."""

    site: str
    predictor: str
    prediction: str
    depth: int
    placed: float
    verdict: BetVerdict
    outcome: Outcome = "open"
    resolved: float | None = None
    saved_seconds: float = 0.0  # how long the shadow worked before the guess was confirmed
    spent_usd: float = 0.0  # by executions of the shadow that nobody used


@dataclass(slots=True)
class Join:
    """The body awaited `promise` after everything in `before`."""

    before: Join | None
    promise: Promise[Any]


@dataclass(slots=True)
class Record:
    """Filled in by one run."""

    flow: str
    run_id: str
    mode: str
    clock: Callable[[], float]
    began: float = 0.0
    ended: float | None = None
    error: str | None = None
    spans: list[Span] = field(default_factory=list)
    bets: list[BetRecord] = field(default_factory=list)
    calls: list[Promise[Any]] = field(default_factory=list)  # of the committed world, in program order
    final: Join | None = None  # what the body had awaited when it returned
    writes: int = 0
    resumed: int = 0  # results taken from the journal

    def now(self) -> float:
        return self.clock() - self.began

    def start(self, execution: Execution) -> Span:
        span = Span(execution.step.name, execution.step.options.effect, self.now())
        span.committed = execution.committed
        span.bet = not execution.committed
        self.spans.append(span)
        return span

    def hedged(self, execution: Execution, delay: float) -> None:
        if execution.span is not None:
            execution.span.hedged = True

    @property
    def seconds(self) -> float:
        """From begin to end of the run."""
        return (self.ended if self.ended is not None else self.clock()) - self.began

    @property
    def usd(self) -> float:
        return sum(span.usd for span in self.spans)

    @property
    def wasted_usd(self) -> float:
        return sum(span.usd for span in self.spans if span.wasted)

    @property
    def wasted_seconds(self) -> float:
        return sum(span.seconds for span in self.spans if span.wasted)

    @property
    def busy_seconds(self) -> float:
        return sum(span.seconds for span in self.spans)

    def outcomes(self) -> dict[str, int]:
        """How many bets were won, lost and declined."""
        return {name: sum(bet.outcome == name for bet in self.bets) for name in ("won", "lost", "declined")}


def nodes_of(record: Record) -> tuple[list[Node], dict[int, int]]:
    """The committed run as a graph of durations, in program order, and where each call (by number) stands.

    Calls wait for their arguments, for effects before them, and for what the body had awaited; each await
    is a node of no duration. The last node is the end of the flow.
    """
    nodes: list[Node] = []
    where: dict[int, int] = {}
    joins: dict[int, int] = {}

    def place(join: Join | None) -> tuple[int, ...]:
        chain: list[Join] = []
        while join is not None and id(join) not in joins:
            chain.append(join)
            join = join.before
        before = () if join is None else (joins[id(join)],)
        for one in reversed(chain):
            awaited = where.get(one.promise.number)
            after = before if awaited is None else (*before, awaited)
            joins[id(one)] = len(nodes)
            nodes.append(Node(0.0, after))
            before = (joins[id(one)],)
        return before

    for promise in record.calls:
        before = place(promise.frontier)
        deps = [where[dep.number] for dep in promise.deps if dep.number in where]
        span = promise.execution.span if promise.execution is not None else None
        where[promise.number] = len(nodes)
        writes = promise.step.writes
        usd = span.usd if span is not None else 0.0
        nodes.append(Node(span.seconds if span is not None else 0.0, (*before, *deps), writes, usd))
    end = place(record.final)
    nodes.append(Node(0.0, end))
    return nodes, where


def mark_critical(record: Record) -> None:
    """Flag the spans on the critical path of a finished run."""
    nodes, where = nodes_of(record)
    at = {position: number for number, position in where.items()}
    numbers = {at[position] for position in critical_path(nodes) if position in at}
    for promise in record.calls:
        if promise.number in numbers and promise.execution is not None and promise.execution.span is not None:
            promise.execution.span.critical = True
