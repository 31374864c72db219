"""`weighbridge bench`: load on a running server, and what came back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from weighbridge.bench import interference, serve
from weighbridge.bench.page import load_page
from weighbridge.cli.options import DEFAULT_URL, JsonOutput, options
from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.knobs import knob
from weighbridge.pages.html import check_page, save
from weighbridge.secret import Secret, without_account
from weighbridge.wire.client import Trust
from weighbridge.workload.arrivals import closed, poisson
from weighbridge.workload.requests import TraceRow
from weighbridge.workload.slo import USUAL, Slo, parse_slo
from weighbridge.workload.traces import TraceOptions, read_rows

Url = Annotated[str, typer.Option(help="The server.")]
Model = Annotated[str | None, typer.Option(help="Its model; none: the first it lists.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """What is sent, and when: by clients that wait for their answers, at random, or as in a trace."""

    concurrency: int | None = knob(None, "Closed loop: clients at once.", min=1)
    requests: int = knob(64, "Requests in all.", min=1)
    prompt_tokens: int = knob(100, min=1)
    output_tokens: int = knob(64, min=1)
    rate: float | None = knob(None, "Open loop: Poisson arrivals per second.", min=0.001)
    trace: Path | None = knob(None, "Open loop: an Azure CSV or a Mooncake JSONL.")
    speed: float = knob(1.0, "How much faster than the trace.", min=0.001)
    limit: int | None = knob(None, "Only the trace's first requests.", min=1)
    scale_prompt: float = knob(1.0, "Factor on the trace's prompts.", min=0.0)
    scale_output: float = knob(1.0, "Factor on the trace's outputs.", min=0.0)
    max_prompt: int | None = knob(None, min=1)
    max_output: int | None = knob(None, min=1)

    def __post_init__(self) -> None:
        if sum(told is not None for told in (self.concurrency, self.rate, self.trace)) > 1:
            raise BadInput("give one of --concurrency, --rate and --trace")

    @property
    def clients(self) -> int | None:
        """How many wait for their answers; None: requests come at their own times."""
        return self.concurrency or (8 if self.rate is None and self.trace is None else None)

    @property
    def words(self) -> str:
        """What is sent and when, for people."""
        if self.trace is not None:
            return f"the requests of {self.trace.name}, {self.speed:g} times as fast"
        when = (
            f"at random, {self.rate:g} a second"
            if self.rate is not None
            else f"by {self.clients} clients at once"
        )
        return f"{self.requests} requests of {self.prompt_tokens} and {self.output_tokens} tokens {when}"

    def arrivals(self, rng: random.Random) -> Sequence[TraceRow]:
        """The requests, in order."""
        if self.trace is not None:
            changes = TraceOptions(
                self.speed,
                self.limit,
                self.scale_prompt,
                self.scale_output,
                self.max_prompt,
                self.max_output,
            )
            return read_rows(self.trace, changes)
        rows = closed(self.requests, self.prompt_tokens, self.output_tokens)
        return rows if self.rate is None else poisson(rows, self.rate, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How requests are made, and which of them count."""

    shared_prefix: int = knob(0, "Tokens all prompts begin with.", min=0)
    warm_up: int = knob(2, "Requests sent first and not counted.", min=0)
    slo: Slo = knob(USUAL, "What counts as good.", parse=parse_slo, written="ttft=1s,tpot=100ms")
    seed: int = knob(0)
    timeout: float = knob(600.0, "Seconds for each request.", min=0.1)
    text_prompts: bool = knob(False, "For servers that take no token ids.", flag="--text-prompts")
    api_key: Secret | None = knob(None, environment="WEIGHBRIDGE_API_KEY", parse=Secret)
    tls_ca: Path | None = knob(None, "Authorities (PEM) that an https server is believed by.")
    html: Path | None = knob(None, "Write the figures and their charts to this page.")


@options
def bench_serve(
    url: Url = DEFAULT_URL,
    model: Model = None,
    *,
    load: LoadSettings,
    how: MeasureSettings,
    json_output: JsonOutput = False,
) -> None:
    """Throughput, TTFT, ITL, TPOT and goodput under a closed loop, Poisson arrivals or a trace."""
    check_page(how.html)
    report = serve.run(
        serve.ServeOptions(
            url,
            model,
            load.arrivals(random.Random(how.seed)),
            concurrency=load.clients,
            shared_prefix=how.shared_prefix,
            warm_up=how.warm_up,
            seed=how.seed,
            timeout=how.timeout,
            text_prompts=how.text_prompts,
            api_key=how.api_key,
            trust=Trust(how.tls_ca),
            slo=how.slo,
        )
    )
    _show(report, json_output)
    if how.html is not None:
        save(how.html, load_page(report, f"{without_account(url)}: {load.words}"))
    if not report.good:
        raise WeighbridgeError("every request failed")


def bench_interference(
    url: Url = DEFAULT_URL,
    model: Model = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams that decode.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt that arrives.")] = 4000,
    json_output: JsonOutput = False,
) -> None:
    """What a long prompt does to the gaps of the streams that decode beside it."""
    report = interference.run(
        interference.InterferenceOptions(url, model, streams=streams, prompt_tokens=prompt_tokens)
    )
    _show(report, json_output)
    if report.errors:
        raise WeighbridgeError(f"{len(report.errors)} requests failed: {report.errors[0]}")


def _show(report: Any, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    else:
        report.print()
