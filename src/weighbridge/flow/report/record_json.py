"""A run's record as JSON, and back."""

from __future__ import annotations

from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.flow.bets.gate import BetVerdict, Stakes
from weighbridge.flow.bets.guess import BetRecord
from weighbridge.flow.hooks import StepSpan
from weighbridge.flow.report.record import Record, mark_critical

#: Executions and bets of a run that are saved, the latest; of those before them their number and price are.
MAX_SPANS, MAX_BETS = 5000, 1000


def record_json(record: Record) -> bytes:
    """Return everything that a timeline shows, of a size that does not grow with the run's length."""
    mark_critical(record)
    spans, bets = record.spans[-MAX_SPANS:], record.bets[-MAX_BETS:]
    return msgspec.json.encode(
        {
            "flow": record.flow,
            "run_id": record.run_id,
            "mode": record.mode,
            "seconds": record.seconds,
            "error": record.error,
            "writes": record.writes,
            "resumed": record.resumed,
            "spans": spans,
            "bets": bets,
            "dropped_spans": len(record.spans) - len(spans),
            "dropped_bets": len(record.bets) - len(bets),
            "dropped_usd": sum(span.usd for span in record.spans[:-MAX_SPANS]),
        }
    )


def record_from_json(data: bytes) -> Record:
    """Return the record again, without the calls behind it. Raises BadInput when `data` is none."""
    try:
        saved: dict[str, Any] = msgspec.json.decode(data)
        record = Record(saved["flow"], saved["run_id"], saved["mode"], lambda: 0.0)
        record.ended_at, record.error = saved["seconds"], saved["error"]
        record.writes, record.resumed = saved["writes"], saved["resumed"]
        for name in ("dropped_spans", "dropped_bets", "dropped_usd"):
            setattr(record, name, saved.get(name, 0))  # version 0 dropped nothing
        record.spans = msgspec.convert(saved["spans"], list[StepSpan])
        for bet in saved["bets"]:
            verdict = bet.pop("verdict")
            stakes = Stakes(**verdict.pop("stakes"))
            record.bets.append(BetRecord(**bet, verdict=BetVerdict(**verdict, stakes=stakes)))
    except (KeyError, TypeError, msgspec.MsgspecError) as error:
        raise BadInput(f"this is not the record of a run: {error}") from error
    return record
