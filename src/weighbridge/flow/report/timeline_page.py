"""A run as one HTML page: bars, critical path and bets. No scripts or fonts from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

from weighbridge.flow.bets.guess import BetRecord
from weighbridge.flow.hooks import StepSpan
from weighbridge.flow.report.record import Record, mark_critical
from weighbridge.pages import html
from weighbridge.pages.html import Html, table, tag

ROW = 26  # pixels
LABEL = 190
CHART = 860

_STYLE = """
:root{--committed:#2f6fde;--won:#12936f;--shadow:#b9c0cc;--cancelled:#e0a458;--failed:#d1495b}
@media(prefers-color-scheme:dark){:root{--committed:#5b93f5;--won:#2fbf94;--shadow:#596273}}
svg line{stroke:var(--line)}.legend i{height:12px;width:12px;border-radius:3px}.bar{rx:4px}
.committed{fill:var(--committed);background:var(--committed)}.won{fill:var(--won);background:var(--won)}
.shadow{fill:var(--shadow);background:var(--shadow)}.cancelled{fill:var(--cancelled);background:var(--cancelled)}
.failed{fill:var(--failed);background:var(--failed)}.critical{stroke:var(--ink);stroke-width:2}
i.critical{border:2px solid var(--ink);box-sizing:border-box}table{width:100%;margin-top:20px}
"""

_KEY = (
    ("committed", "committed"),
    ("won", "bet that was won"),
    ("shadow", "shadow, not used"),
    ("cancelled", "cancelled"),
    ("failed", "failed"),
    ("critical", "critical path"),
)


def page(record: Record) -> str:
    """Return the whole page."""
    if record.calls:
        mark_critical(record)
    key = (tag("span", tag("i", cls=name), text) for name, text in _KEY)
    return html.page(
        f"{record.flow}, run {record.run_id}",
        tag("h1", record.flow),
        tag("p", _facts(record), cls="soft"),
        tag("div", *key, cls="legend"),
        tag("div", _chart(record), cls="wide"),
        *_bets(record),
        style=_STYLE,
    )


def _facts(record: Record) -> str:
    facts = [f"run {record.run_id}", record.mode, f"{record.seconds:.3f} s", f"${record.usd:.4g}"]
    facts.append(f"{record.wasted_seconds:.3f} s and ${record.wasted_usd:.4g} of work went to waste")
    if record.resumed:
        facts.append(f"{record.resumed} results came from the journal")
    if record.error:
        facts.append(f"failed: {record.error}")
    return " · ".join(facts)


def _chart(record: Record) -> Html:
    total = max([record.seconds, *[span.finished or 0.0 for span in record.spans], 1e-9])
    height = ROW * len(record.spans) + 34
    parts: list[Html] = []
    for tick in _ticks(total):
        x = f"{LABEL + CHART * tick / total:.1f}"
        parts.append(tag("line", x1=x, y1=18, x2=x, y2=height))
        parts.append(tag("text", _duration(tick), cls="soft", x=x, y=12, text_anchor="middle"))
    parts += [_bar(span, row, total) for row, span in enumerate(record.spans)]
    return tag("svg", *parts, viewBox=f"0 0 {LABEL + CHART + 80} {height}", role="img", aria_label="timeline")


def _ticks(total: float) -> list[float]:
    """Return round times from 0 to `total` seconds, at most seven: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(total / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= total)
    return [step * number for number in range(int(total / step + 1e-9) + 1)]


def _bar(span: StepSpan, row: int, total: float) -> Html:
    began = span.started if span.started is not None else span.called
    ended = span.finished if span.finished is not None else total
    x = LABEL + began / total * CHART
    width = max((ended - began) / total * CHART, 2.0)
    y = 22 + row * ROW
    kind = "won" if span.bet and span.status == "committed" else span.status
    critical = " critical" if span.critical else ""
    name = span.name if len(span.name) <= 26 else span.name[:25] + "…"
    tip = f"{span.name} ({span.effect}): {kind}, {began:.3f} to {ended:.3f} s, ${span.usd:.4g}"
    if span.hedged:
        tip += ", launched twice"
    if span.error:
        tip += f", {span.error}"
    bar = tag(
        "rect", cls=f"bar {kind}{critical}", x=f"{x:.1f}", y=y + 3, width=f"{width:.1f}", height=ROW - 8
    )
    return tag(
        "g",
        tag("title", tip),
        tag("text", name, cls="ink", x=0, y=y + 15),
        bar,
        tag("text", _duration(ended - began), x=f"{x + width + 6:.1f}", y=y + 15),
    )


def _duration(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 99.95 else f"{seconds:.0f} s"


def _bets(record: Record) -> Iterator[Html]:
    if record.bets:
        head = ("at", "guess", "p", "ΔL", "C", "Q + R", "verdict", "outcome")
        yield table(head, map(_bet, record.bets), words=True)


def _bet(bet: BetRecord) -> list[object]:
    stakes = bet.verdict.stakes
    outcome = str(bet.outcome)
    if bet.outcome == "won":
        outcome = f"won {_duration(bet.saved_seconds)}"
    elif bet.outcome == "lost":
        outcome = f"lost ${bet.spent_usd:.3g}" if bet.spent_usd else "lost"
    return [
        _duration(bet.placed),
        f"{bet.site} = {bet.prediction}",
        f"{stakes.probability:.2f}",
        _duration(stakes.saved_seconds),
        f"${stakes.cost_usd:.3g}",
        f"${stakes.queue_usd + stakes.risk_usd:.2g}",
        tag("span", bet.verdict, cls="soft"),
        outcome,
    ]
