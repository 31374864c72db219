"""The options of `weighbridge simulate`, in the groups that its help shows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_workload = partial(typer.Option, rich_help_panel="What arrives")
_machine = partial(typer.Option, rich_help_panel="How fast and dear a replica is")
_engine = partial(typer.Option, rich_help_panel="The engine of a replica")
_fleet = partial(typer.Option, rich_help_panel="The fleet")
_run = partial(typer.Option, rich_help_panel="What is asked")

Trace = Annotated[
    Path | None, _workload(help="Azure CSV, Mooncake or plain JSONL, ServeGen directory, or tickets.")
]
Workload = Annotated[
    str | None,
    _workload(
        help="Synthetic, such as poisson:rate=5,requests=1000 with prompt=LENGTHS and output=LENGTHS, each such as "
        "200 or lognormal:600:0.9. Also gamma, constant, bursts, heavy_tail, shared_prefix, sessions, agents."
    ),
]
Rate = Annotated[float | None, _workload(min=1e-6, help="Requests a second, instead of the workload's.")]
Limit = Annotated[int | None, _workload(min=1, help="Only the trace's first requests.")]
ScalePrompt = Annotated[float, _workload(min=0.0, help="Factor on the trace's prompts.")]
ScaleOutput = Annotated[float, _workload(min=0.0, help="Factor on the trace's outputs.")]
MaxTokens = Annotated[
    int | None, _workload(min=1, help="What clients allow; none: the longest output's size.")
]
Start = Annotated[float | None, _workload(min=0.0, help="ServeGen: from this second; none: the busiest.")]
Duration = Annotated[float, _workload(min=1.0, help="ServeGen: for so many seconds.")]

Model = Annotated[
    str | None, _machine(help="With --device: a catalogue name, config.json, directory or GGUF file.")
]
Device = Annotated[str | None, _machine(help="A device of `weighbridge plan --list-devices`.")]
TensorParallel = Annotated[int, _machine(min=1, help="With --device: GPUs of one replica.")]
Weights = Annotated[str | None, _machine(help="With --device: bf16, fp8, awq ...")]
StepCostFile = Annotated[
    Path | None, _machine(help="Instead of a device: JSON of `weighbridge calibrate --json`.")
]
Fit = Annotated[
    Path | None, _machine(help="Instead: CSV of timings (tokens, sequences, context_tokens, seconds).")
]
Price = Annotated[float | None, _machine(min=0.0, help="USD per replica-hour; none: the device's.")]

Profile = Annotated[str, _engine(help="Whose scheduling rules: weighbridge or vllm.")]
Batching = Annotated[str, _engine(help="continuous or static.")]
StaticBatch = Annotated[int, _engine(min=1, help="With --batching static: requests of a batch.")]
StaticTimeout = Annotated[float, _engine(min=0.0, help="Seconds a static batch waits to fill.")]
KvTokens = Annotated[
    int | None, _engine(min=1, help="KV cache in tokens; none: what the device holds, or 131,072.")
]
MaxModelLen = Annotated[int, _engine(min=2, help="Prompt and answer together, in tokens.")]
MaxBatchTokens = Annotated[int, _engine(min=1, help="Tokens of one iteration.")]
MaxSequences = Annotated[int, _engine(min=1, help="Requests in one batch.")]
BlockSize = Annotated[int | None, _engine(min=1, help="Tokens of a KV block; none: the engine's.")]
PrefixCache = Annotated[bool, _engine(help="Share equal prompt beginnings.")]

Replicas = Annotated[int, _fleet(min=1, help="How many.")]
Speeds = Annotated[str | None, _fleet(help="Relative speed of each replica, such as 1,1,0.5.")]
Policy = Annotated[
    str, _fleet(help="How the gateway chooses a replica; a name that is none prints them all.")
]
Events = Annotated[
    list[str] | None, _fleet(help="SECONDS:fail|drain|add:NAME, replicas are r0, r1 ...; may repeat.")
]
Autoscale = Annotated[
    str | None,
    _fleet(
        help="The fleet's own rule: min=2,max=8 and, where wanted, high=5, low=1 (seconds of queued work), up=2, "
        "down=60, settle=10, startup=30 (seconds)."
    ),
]
TokensPerMinute = Annotated[int | None, _fleet(min=1, help="Limit of each tenant.")]
MaxQueue = Annotated[int, _fleet(min=0, help="Requests that may wait in the gateway.")]

Slo = Annotated[str, _run(help="What counts as good.")]
Seed = Annotated[int, _run(min=0, help="First seed.")]
Seeds = Annotated[int, _run(min=1, help="How many, for confidence intervals.")]
Compare = Annotated[
    str | None, _run(help="policy=weigh,round_robin or another of batching, replicas, engine-profile.")
]
Sweep = Annotated[str | None, _run(help="rate=1,2,4 or rate=auto: find the knee.")]
Jobs = Annotated[int | None, _run(min=1, help="Runs side by side; none: one for each core.")]
Html = Annotated[Path | None, _run(help="Write timelines and curves to this file.")]
Json = Annotated[bool, _run("--json", help="Print JSON.")]
