"""A run as text: one bar per execution, in the order they were called."""

from __future__ import annotations

from weighbridge.flow.hooks import StepSpan
from weighbridge.flow.report.record import Record, mark_critical

#: How a bar is drawn, by what became of the execution.
MARKS = {"committed": "█", "shadow": "░", "cancelled": "╌", "failed": "×"}
MAX_ROWS = 200


def text(record: Record, width: int = 100, first: int = 0) -> str:
    """Draw bars over time. A bet that was won is a committed bar that began early, marked with `?`.

    `first`: how many executions are passed over, for runs of more than `MAX_ROWS`.
    """
    if record.calls:
        mark_critical(record)
    spans = record.spans[first : first + MAX_ROWS]
    label = min(max([len(span.name) for span in spans], default=4), 28)
    room = max(width - label - 30, 20)
    total = max([record.seconds, *[span.finished or 0.0 for span in spans], 1e-9])
    lines = [_head(record)]
    if record.dropped_spans:
        lines.append(f"{record.dropped_spans} executions before these were not kept")
    lines += [_row(span, label, room, total) for span in spans]
    if len(record.spans) > first + MAX_ROWS:
        lines.append(f"... and {len(record.spans) - first - MAX_ROWS} more")
    lines.append(f"{'':{label}}  0{total:>{room - 1}.3f} s")
    lines.append("█ committed  ░ shadow, not used  ╌ cancelled  × failed   ? bet   * critical path")
    return "\n".join(lines)


def _head(record: Record) -> str:
    counts = record.outcomes()
    bets = ", ".join(f"{count} {name}" for name, count in counts.items())
    state = f" FAILED: {record.error}" if record.error else ""
    resumed = f", {record.resumed} results from the journal" if record.resumed else ""
    head = f"{record.flow}  run {record.run_id}  {record.mode}  {record.seconds:.3f} s  ${record.usd:.4g}"
    return f"{head}  bets: {bets}{resumed}{state}"


def _row(span: StepSpan, label: int, room: int, total: float) -> str:
    began = span.started if span.started is not None else span.called
    ended = span.finished if span.finished is not None else total
    left = min(int(began / total * room), room - 1)
    size = max(min(round(ended / total * room), room) - left, 1)
    bar = " " * left + MARKS[span.status] * size
    flags = ("?" if span.bet else " ") + ("*" if span.critical else " ") + ("2" if span.hedged else " ")
    usd = f" ${span.usd:.3g}" if span.usd else ""
    return f"{_cut(span.name, label):<{label}}  {bar:<{room}} {flags} {ended - began:8.3f} s{usd}"


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
