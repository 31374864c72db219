"""A run as one HTML page: bars, critical path and bets. No scripts or fonts from elsewhere."""

from __future__ import annotations

import math
from html import escape

from weighbridge.flow.bets.guess import BetRecord
from weighbridge.flow.hooks import StepSpan
from weighbridge.flow.report.record import Record, mark_critical

ROW = 26  # pixels
LABEL = 190
CHART = 860

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #e4e7ec; --page: #fcfcfd;
  --committed: #2f6fde; --won: #12936f; --shadow: #b9c0cc; --cancelled: #e0a458; --failed: #d1495b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #98a2b3; --line: #2b3442;
  --page: #12161d; --committed: #5b93f5; --won: #2fbf94; --shadow: #596273; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1120px; margin: 32px auto; padding: 0 20px; }
h1 { font-size: 20px; margin: 0 0 2px; } p, .key { color: var(--soft); margin: 0 0 16px; }
.key span { margin-right: 18px; white-space: nowrap; } .key i { display: inline-block; width: 12px;
  height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); } svg line { stroke: var(--line); }
.bar { rx: 4px; } .committed { fill: var(--committed); background: var(--committed); }
.won { fill: var(--won); background: var(--won); } .shadow { fill: var(--shadow); background: var(--shadow); }
.cancelled { fill: var(--cancelled); background: var(--cancelled); }
.failed { fill: var(--failed); background: var(--failed); }
.critical { stroke: var(--ink); stroke-width: 2; } i.critical { border: 2px solid var(--ink); box-sizing: border-box; }
table { border-collapse: collapse; width: 100%; margin-top: 20px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.reason { color: var(--soft); } .scroll { overflow-x: auto; }
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
    """The whole page."""
    if record.calls:
        mark_critical(record)
    title = f"{record.flow}, run {record.run_id}"
    key = "".join(f'<span><i class="{name}"></i>{text}</span>' for name, text in _KEY)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(record.flow)}</h1><p>{escape(_facts(record))}</p>"
        f'<div class="key">{key}</div><div class="scroll">{_chart(record)}</div>{_bets(record)}</body></html>'
    )


def _facts(record: Record) -> str:
    facts = [f"run {record.run_id}", record.mode, f"{record.seconds:.3f} s", f"${record.usd:.4g}"]
    facts.append(f"{record.wasted_seconds:.3f} s and ${record.wasted_usd:.4g} of work went to waste")
    if record.resumed:
        facts.append(f"{record.resumed} results came from the journal")
    if record.error:
        facts.append(f"failed: {record.error}")
    return " · ".join(facts)


def _chart(record: Record) -> str:
    total = max([record.seconds, *[span.finished or 0.0 for span in record.spans], 1e-9])
    height = ROW * len(record.spans) + 34
    parts = [f'<svg viewBox="0 0 {LABEL + CHART + 80} {height}" role="img" aria-label="timeline">']
    for tick in _ticks(total):
        x = LABEL + CHART * tick / total
        parts.append(f'<line x1="{x:.1f}" y1="18" x2="{x:.1f}" y2="{height}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="12" text-anchor="middle">{_duration(tick)}</text>')
    parts += [_bar(span, row, total) for row, span in enumerate(record.spans)]
    return "".join([*parts, "</svg>"])


def _ticks(total: float) -> list[float]:
    """Round times from 0 to `total` seconds, at most seven: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(total / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= total)
    return [step * number for number in range(int(total / step + 1e-9) + 1)]


def _bar(span: StepSpan, row: int, total: float) -> str:
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
    return (
        f'<g><title>{escape(tip)}</title><text x="0" y="{y + 15}">{escape(name)}</text>'
        f'<rect class="bar {kind}{critical}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 8}"/>'
        f'<text class="soft" x="{x + width + 6:.1f}" y="{y + 15}">{_duration(ended - began)}</text></g>'
    )


def _duration(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 99.95 else f"{seconds:.0f} s"


def _bets(record: Record) -> str:
    if not record.bets:
        return ""
    head = "".join(
        f"<th>{name}</th>" for name in ("at", "guess", "p", "ΔL", "C", "Q + R", "verdict", "outcome")
    )
    rows = "".join(_bet(bet) for bet in record.bets)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _bet(bet: BetRecord) -> str:
    stakes = bet.verdict.stakes
    outcome = str(bet.outcome)
    if bet.outcome == "won":
        outcome = f"won {_duration(bet.saved_seconds)}"
    elif bet.outcome == "lost":
        outcome = f"lost ${bet.spent_usd:.3g}" if bet.spent_usd else "lost"
    cells = (
        _duration(bet.placed),
        f"{bet.site} = {bet.prediction}",
        f"{stakes.probability:.2f}",
        _duration(stakes.saved_seconds),
        f"${stakes.cost_usd:.3g}",
        f"${stakes.queue_usd + stakes.risk_usd:.2g}",
    )
    plain = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr>{plain}<td class="reason">{escape(str(bet.verdict))}</td><td>{escape(outcome)}</td></tr>'
