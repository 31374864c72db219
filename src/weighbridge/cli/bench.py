"""`weighbridge bench`: load on a running server, and what came back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput, WeighbridgeError

Url = Annotated[str, typer.Option(help="The server.")]
Model = Annotated[str | None, typer.Option(help="Its model; none: the first it lists.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def bench_serve(
    url: Url = "http://127.0.0.1:8080",
    model: Model = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop: clients at once.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 100,
    output_tokens: Annotated[int, typer.Option(min=1)] = 64,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Open loop: Poisson arrivals per second.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Open loop: an Azure CSV or a Mooncake JSONL.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="How much faster than the trace.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the trace's first requests.")] = None,
    scale_prompt: Annotated[float, typer.Option(min=0.0, help="Factor on the trace's prompts.")] = 1.0,
    scale_output: Annotated[float, typer.Option(min=0.0, help="Factor on the trace's outputs.")] = 1.0,
    max_prompt: Annotated[int | None, typer.Option(min=1)] = None,
    max_output: Annotated[int | None, typer.Option(min=1)] = None,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens all prompts begin with.")] = 0,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests sent first and not counted.")] = 2,
    slo: Annotated[str, typer.Option(help="What counts as good.")] = "ttft=1s,tpot=100ms",
    seed: Annotated[int, typer.Option()] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for each request.")] = 600.0,
    text_prompts: Annotated[
        bool, typer.Option("--text-prompts", help="For servers that take no token ids.")
    ] = False,
    api_key: Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Throughput, TTFT, ITL, TPOT and goodput under a closed loop, Poisson arrivals or a trace."""
    from weighbridge.bench import serve
    from weighbridge.workload.arrivals import closed, poisson
    from weighbridge.workload.slo import parse_slo
    from weighbridge.workload.traces import TraceOptions, read_rows

    if sum(option is not None for option in (concurrency, rate, trace)) > 1:
        raise BadInput("give one of --concurrency, --rate and --trace")
    if trace is not None:
        changes = TraceOptions(speed, limit, scale_prompt, scale_output, max_prompt, max_output)
        arrivals = read_rows(trace, changes)
    else:
        arrivals = closed(requests, prompt_tokens, output_tokens)
    if rate is not None:
        arrivals = poisson(arrivals, rate, random.Random(seed))
    closed_loop = concurrency or (8 if rate is None and trace is None else None)
    options = serve.ServeOptions(
        url,
        model,
        arrivals,
        concurrency=closed_loop,
        shared_prefix=shared_prefix,
        warm_up=warm_up,
        seed=seed,
        timeout=timeout,
        text_prompts=text_prompts,
        api_key=api_key,
        slo=parse_slo(slo),
    )
    report = serve.run(options)
    if json_output:
        print_json(report.as_dict())
    else:
        report.print()
    if not report.good:
        raise WeighbridgeError("every request failed")


def bench_interference(
    url: Url = "http://127.0.0.1:8080",
    model: Model = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams that decode.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt that arrives.")] = 4000,
    json_output: JsonOutput = False,
) -> None:
    """What a long prompt does to the gaps of the streams that decode beside it."""
    from weighbridge.bench import interference

    report = interference.run(
        interference.InterferenceOptions(url, model, streams=streams, prompt_tokens=prompt_tokens)
    )
    if json_output:
        print_json(report.as_dict())
    else:
        report.print()
    if report.errors:
        raise WeighbridgeError(f"{len(report.errors)} requests failed: {report.errors[0]}")
