"""Percentiles, throughput and goodput of a run, as JSON or a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from weighbridge.bench.client import Outcome
from weighbridge.errors import BadInput

#: Seconds that a reader waits for the first token, and between tokens, without complaint.
DEFAULT_TTFT, DEFAULT_TPOT = 1.0, 0.1


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good: seconds to the first token, and per token after it."""

    ttft: float = DEFAULT_TTFT
    tpot: float = DEFAULT_TPOT

    @staticmethod
    def parse(text: str) -> Slo:
        """`ttft=500ms,tpot=50ms`. Raises BadInput otherwise."""
        limits = {"ttft": DEFAULT_TTFT, "tpot": DEFAULT_TPOT}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            factor = 1e-3 if value.endswith("ms") else 1.0
            try:
                if name not in limits:
                    raise ValueError(name)
                limits[name] = float(value.removesuffix("ms").removesuffix("s")) * factor
            except ValueError:
                raise BadInput(
                    f"--slo {text!r}: write for example ttft=500ms,tpot=50ms", param="slo"
                ) from None
        return Slo(**limits)

    def met(self, outcome: Outcome) -> bool:
        return outcome.ttft <= self.ttft and (outcome.tpot or 0.0) <= self.tpot


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Report:
    """One run: `seconds` from the first request sent to the last token received."""

    outcomes: list[Outcome]
    seconds: float
    slo: Slo

    @property
    def good(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.error is None]

    def as_dict(self) -> dict[str, Any]:
        good = self.good
        seconds = self.seconds or 1.0
        return {
            "output_tokens_per_s": sum(one.output_tokens for one in good) / seconds,
            "total_tokens_per_s": sum(one.output_tokens + one.prompt_tokens for one in good) / seconds,
            "ttft_ms": _percentiles([one.ttft for one in good]),
            "itl_ms": _percentiles([gap for one in good for gap in one.gaps]),
            "tpot_ms": _percentiles([one.tpot for one in good if one.tpot is not None]),
            "e2e_ms": _percentiles([one.e2e for one in good]),
            "goodput_rps": sum(self.slo.met(one) for one in good) / seconds,
            "slo": {"ttft_ms": self.slo.ttft * 1e3, "tpot_ms": self.slo.tpot * 1e3},
            "errors": len(self.outcomes) - len(good),
            "error_samples": [
                text for text, _ in Counter(o.error for o in self.outcomes if o.error).most_common(3)
            ],
            "requests": len(self.outcomes),
            "seconds": self.seconds,
        }

    def print(self) -> None:
        figures = self.as_dict()
        table = Table("", "p50", "p95", "p99")
        for name, key in (
            ("TTFT ms", "ttft_ms"),
            ("ITL ms", "itl_ms"),
            ("TPOT ms", "tpot_ms"),
            ("total ms", "e2e_ms"),
        ):
            table.add_row(name, *(f"{figures[key][p]:.1f}" for p in ("p50", "p95", "p99")))
        console = Console()
        console.print(table)
        console.print(
            f"{figures['output_tokens_per_s']:.1f} output tokens/s, {figures['goodput_rps']:.2f} good requests/s, "
            f"{figures['requests']} requests, {figures['errors']} errors in {self.seconds:.1f} s"
        )
        for sample in figures["error_samples"]:
            console.print(f"error: {sample}", style="red", markup=False)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{int(share * 100)}": percentile(seconds, share) * 1e3 for share in (0.5, 0.95, 0.99)}
