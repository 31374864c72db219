"""Every bet of a run in words: what was expected of it, what the gate said, what came of it."""

from __future__ import annotations

from weighbridge.flow.bets.guess import BetRecord
from weighbridge.flow.report.record import Record


def explain(record: Record) -> str:
    """Return one paragraph per bet in the order they were considered, and what they brought together."""
    if not record.bets:
        reason = "nothing was guessed" if record.mode == "speculate" else f"the mode was {record.mode}"
        return f"{_head(record)}\nNo bets: {reason}."
    lines = [_head(record), *[_bet(number, bet) for number, bet in enumerate(record.bets, 1)], _sum(record)]
    return "\n".join(lines)


def _head(record: Record) -> str:
    state = f", failed: {record.error}" if record.error else ""
    return f"{record.flow} ({record.run_id}): {record.seconds:.3f} s, ${record.usd:.4g}, {record.mode}{state}"


def _bet(number: int, bet: BetRecord) -> str:
    stakes = bet.verdict.stakes
    terms = f"p={stakes.probability:.2f} ΔL={stakes.saved_seconds:.3g}s C=${stakes.cost_usd:.3g}"
    if stakes.queue_usd or stakes.risk_usd:
        terms += f" Q=${stakes.queue_usd:.3g} R=${stakes.risk_usd:.3g}"
    result = str(bet.outcome)
    if bet.outcome == "won":
        result = f"won {bet.saved_seconds:.3f} s"
    elif bet.outcome == "lost":
        result = f"lost ${bet.spent_usd:.4g}" if bet.spent_usd else "lost"
    elif bet.outcome == "moot":
        result = "moot: the guess before it was wrong"
    depth = f", {bet.depth} deep" if bet.depth > 1 else ""
    head = f"{number:>3}. {bet.placed:8.3f}s {bet.site} = {bet.prediction} ({bet.predictor}{depth})"
    return f"{head}\n       {terms}\n       {bet.verdict} -> {result}"


def _sum(record: Record) -> str:
    counts = record.outcomes()
    saved = sum(bet.saved_seconds for bet in record.bets)
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    wasted = f"${record.wasted_usd:.4g} and {record.wasted_seconds:.3f} s of work went to waste"
    return f"Bets: {text}; {saved:.3f} s worked ahead, {wasted}."
