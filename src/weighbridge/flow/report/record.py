"""What happened in a run: every execution, every bet, and what waited for what. Plain data for reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from weighbridge.flow.bets.call_graph import nodes_of
from weighbridge.flow.bets.gate import critical_path
from weighbridge.flow.bets.guess import BetRecord
from weighbridge.flow.hooks import CallView, ExecutionView, Hook, Join, RunView, StepSpan


@dataclass(slots=True)
class Record(Hook):
    """Filled in by one run."""

    flow: str
    run_id: str
    mode: str
    clock: Callable[[], float]
    began: float = 0.0  # by `clock`
    ended_at: float | None = None
    error: str | None = None
    spans: list[StepSpan] = field(default_factory=list)
    bets: list[BetRecord] = field(default_factory=list)
    calls: list[CallView] = field(default_factory=list)  # of the committed world, in program order
    final: Join | None = None  # what the body had awaited when it returned
    writes: int = 0
    resumed: int = 0  # results taken from the journal
    dropped_spans: int = 0  # the first ones, which a saved record does not hold any more
    dropped_bets: int = 0
    dropped_usd: float = 0.0  # what those spans cost

    def called(self, call: CallView) -> None:
        self.calls.append(call)
        self.writes += call.step.writes

    def started(self, call: CallView, execution: ExecutionView) -> None:
        if execution.span is not None:
            self.spans.append(execution.span)

    def ended(self, run: RunView) -> None:
        self.error = run.error
        self.final = run.frontier
        self.resumed = run.resumed
        self.ended_at = run.clock()

    @property
    def seconds(self) -> float:
        """How long the run took, from its beginning to its end."""
        return (self.ended_at if self.ended_at is not None else self.clock()) - self.began

    @property
    def usd(self) -> float:
        return self.dropped_usd + sum(span.usd for span in self.spans)

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


def mark_critical(record: Record) -> None:
    """Flag the spans on the critical path of a finished run."""
    nodes, position_of = nodes_of(record.calls, record.final)
    number_at = {position: number for number, position in position_of.items()}
    numbers = {number_at[position] for position in critical_path(nodes) if position in number_at}
    for call in record.calls:
        if call.number in numbers and call.execution is not None and call.execution.span is not None:
            call.execution.span.critical = True
