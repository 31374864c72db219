"""Percentiles, throughput and goodput of a run, as JSON or a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from weighbridge.bench.client import StreamedAnswer
from weighbridge.workload.quantiles import quantile, quantiles_ms
from weighbridge.workload.slo import Slo

_SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A run of load: `seconds` from the first request sent to the last token received."""

    answers: list[StreamedAnswer]
    seconds: float
    slo: Slo
    prompts: str = "ids"  # or text
    client_seconds: float = 0.0  # processor time of the load generator
    late: list[float] | None = None  # open loop: seconds by which requests left after their time

    @property
    def good(self) -> list[StreamedAnswer]:
        """Requests that came to their end, whatever the SLO says of them."""
        return [answer for answer in self.answers if answer.error is None]

    def as_dict(self) -> dict[str, Any]:
        good = self.good
        seconds = self.seconds or 1.0
        output = sum(answer.output_tokens for answer in good)
        prompt = sum(answer.prompt_tokens for answer in good)
        kept = sum(self.slo.met(answer.ttft, answer.tpot or 0.0) for answer in good)
        share = kept / len(self.answers) if self.answers else 0.0
        return {
            "output_tokens_per_s": output / seconds,
            "total_tokens_per_s": (output + prompt) / seconds,
            "ttft_ms": quantiles_ms([answer.ttft for answer in good], _SHARES),
            "itl_ms": quantiles_ms([gap for answer in good for gap in answer.token_gaps], _SHARES),
            "tpot_ms": quantiles_ms([answer.tpot for answer in good if answer.tpot is not None], _SHARES),
            "e2e_ms": quantiles_ms([answer.e2e for answer in good], _SHARES),
            "goodput_rps": kept / seconds,
            "good_share": share,
            "slo": {
                "ttft_ms": self.slo.ttft_s * 1e3,
                "tpot_ms": self.slo.tpot_s * 1e3,
                "p": self.slo.quantile * 100,
                "met": share >= self.slo.quantile,
            },
            "errors": len(self.answers) - len(good),
            "error_samples": [
                text for text, _ in Counter(o.error for o in self.answers if o.error).most_common(3)
            ],
            "requests": len(self.answers),
            "seconds": self.seconds,
            "output_tokens": output,
            "prompt_tokens": prompt,
            "prompts": self.prompts,
            "short": sum(
                answer.output_tokens < answer.ordered_tokens for answer in good
            ),  # fewer tokens than asked
            "counted_by_chunks": sum(not answer.counted for answer in good),  # the server told no usage
            "client_cpu_share": self.client_seconds / seconds,
            **({} if self.late is None else {"late_ms": quantiles_ms(self.late, _SHARES)}),
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
            came = figures["requests"] > figures["errors"]
            table.add_row(name, *(f"{figures[key][p]:.1f}" if came else "-" for p in ("p50", "p95", "p99")))
        console = Console(highlight=False)
        console.print(table)
        console.print(
            f"{figures['output_tokens_per_s']:.1f} output tokens/s, "
            f"{figures['goodput_rps']:.2f} requests/s within TTFT {figures['slo']['ttft_ms']:g} ms and "
            f"TPOT {figures['slo']['tpot_ms']:g} ms; "
            f"{figures['requests']} requests, {figures['errors']} errors in {self.seconds:.1f} s",
            soft_wrap=True,
        )
        for warning in self.warnings():
            console.print(warning, style="yellow", markup=False, soft_wrap=True)
        for sample in figures["error_samples"]:
            console.print(f"error: {sample}", style="red", markup=False, soft_wrap=True)

    def warnings(self) -> list[str]:
        """What makes the figures mean less than they seem to."""
        figures = self.as_dict()
        said = []
        if figures["short"]:
            said.append(f"{figures['short']} answers were shorter than asked: the server ended them early")
        if figures["counted_by_chunks"]:
            said.append(
                f"{figures['counted_by_chunks']} answers came without usage: their tokens are chunks counted"
            )
        if self.late and quantile(self.late, 0.99) > 0.1:
            said.append(f"1 % of the requests left {figures['late_ms']['p99']:.0f} ms late or more")
        return said
