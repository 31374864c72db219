"""Percentiles, throughput and goodput of a run, as JSON or a table."""

from __future__ import annotations

import math
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
        """`ttft=500ms,tpot=50ms`; a bare number is seconds. Raises BadInput otherwise."""
        limits = {"ttft": DEFAULT_TTFT, "tpot": DEFAULT_TPOT}
        try:
            for part in text.split(","):
                name, _, value = part.strip().partition("=")
                if name not in limits:
                    raise ValueError(name)
                limits[name] = _seconds(value)
        except ValueError:
            raise BadInput(f"--slo {text!r}: write for example ttft=500ms,tpot=50ms", param="slo") from None
        return Slo(**limits)

    def met(self, outcome: Outcome) -> bool:
        return outcome.ttft <= self.ttft and (outcome.tpot or 0.0) <= self.tpot


def _seconds(text: str) -> float:
    factor = 1e-3 if text.endswith("ms") else 1.0
    value = float(text.removesuffix("ms" if text.endswith("ms") else "s")) * factor
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics (numpy's default); 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{round(share * 100)}": percentile(seconds, share) * 1e3 for share in (0.5, 0.95, 0.99)}


@dataclass(frozen=True, slots=True)
class Report:
    """One run: `seconds` from the first request sent to the last token received."""

    outcomes: list[Outcome]
    seconds: float
    slo: Slo
    prompts: str = "ids"  # or text
    client_seconds: float = 0.0  # processor time of the load generator
    late: list[float] | None = None  # open loop: seconds by which requests left after their time

    @property
    def good(self) -> list[Outcome]:
        """Requests that came to their end, whatever the SLO says of them."""
        return [one for one in self.outcomes if one.error is None]

    def as_dict(self) -> dict[str, Any]:
        good = self.good
        seconds = self.seconds or 1.0
        output = sum(one.output_tokens for one in good)
        prompt = sum(one.prompt_tokens for one in good)
        return {
            "output_tokens_per_s": output / seconds,
            "total_tokens_per_s": (output + prompt) / seconds,
            "ttft_ms": percentiles_ms([one.ttft for one in good]),
            "itl_ms": percentiles_ms([gap for one in good for gap in one.token_gaps]),
            "tpot_ms": percentiles_ms([one.tpot for one in good if one.tpot is not None]),
            "e2e_ms": percentiles_ms([one.e2e for one in good]),
            "goodput_rps": sum(self.slo.met(one) for one in good) / seconds,
            "slo": {"ttft_ms": self.slo.ttft * 1e3, "tpot_ms": self.slo.tpot * 1e3},
            "errors": len(self.outcomes) - len(good),
            "error_samples": [
                text for text, _ in Counter(o.error for o in self.outcomes if o.error).most_common(3)
            ],
            "requests": len(self.outcomes),
            "seconds": self.seconds,
            "output_tokens": output,
            "prompt_tokens": prompt,
            "prompts": self.prompts,
            "short": sum(one.output_tokens < one.asked for one in good),  # fewer tokens than asked
            "counted_by_chunks": sum(not one.counted for one in good),  # the server told no usage
            "client_cpu_share": self.client_seconds / seconds,
            **({} if self.late is None else {"late_ms": percentiles_ms(self.late)}),
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
        console = Console(highlight=False)
        console.print(table)
        console.print(
            f"{figures['output_tokens_per_s']:.1f} output tokens/s, "
            f"{figures['goodput_rps']:.2f} requests/s within TTFT {figures['slo']['ttft_ms']:g} ms and "
            f"TPOT {figures['slo']['tpot_ms']:g} ms; "
            f"{figures['requests']} requests, {figures['errors']} errors in {self.seconds:.1f} s",
            soft_wrap=True,
        )
        for warning in self._warnings(figures):
            console.print(warning, style="yellow", markup=False, soft_wrap=True)
        for sample in figures["error_samples"]:
            console.print(f"error: {sample}", style="red", markup=False, soft_wrap=True)

    def _warnings(self, figures: dict[str, Any]) -> list[str]:
        """What makes the figures mean less than they seem to."""
        said = []
        if figures["short"]:
            said.append(f"{figures['short']} answers were shorter than asked: the server ended them early")
        if figures["counted_by_chunks"]:
            said.append(
                f"{figures['counted_by_chunks']} answers came without usage: their tokens are chunks counted"
            )
        if self.late and percentile(self.late, 0.99) > 0.1:
            said.append(f"1 % of the requests left {figures['late_ms']['p99']:.0f} ms late or more")
        return said
