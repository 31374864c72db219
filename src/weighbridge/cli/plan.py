"""`weighbridge plan`: what fits, how fast it runs, what it costs, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import options
from weighbridge.cli.terminal import print_json
from weighbridge.cost.hardware import Device, custom_device, devices, find_device
from weighbridge.cost.roofline import decode_share
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.planner.memory.engines import parse_version
from weighbridge.planner.memory.memory import MemoryPlan, PlannedModel, plan_memory
from weighbridge.planner.memory.own import kind_of_device
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.model.catalogue import catalogue
from weighbridge.planner.report.page import page, recommendation_page
from weighbridge.planner.report.printing import print_choices, print_packing, print_plan
from weighbridge.planner.report.report import choice_json, placed_json, plan_json
from weighbridge.planner.search.commands import engine_command, fleet_yaml
from weighbridge.planner.search.fit import changes
from weighbridge.planner.search.packing import pack
from weighbridge.planner.search.search import Search, confirmed
from weighbridge.planner.search.search import recommend as recommend_deployments
from weighbridge.planner.search.simulated import simulated
from weighbridge.planner.search.speed import (
    DEFAULT_OUTPUT,
    DEFAULT_PROMPT,
    Speed,
    measure,
    step_cost,
    typical_batch,
    usual_batches,
)
from weighbridge.workload.slo import Slo, parse_slo
from weighbridge.workload.traces import read_rows
from weighbridge.workload.traffic import Traffic, traffic_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """The devices there are."""

    device: str | None = knob(None, "A device of the catalogue, such as H100-80GB, or `here`: this machine.")
    count: int | None = knob(None, "Devices there are.", min=1)
    tp: int | None = knob(None, "Tensor parallelism.", flag=("--tp", "--tensor-parallel-size"), min=1)
    device_memory: float | None = knob(None, "GiB that the driver shows, where known.")

    def found(self) -> Device | None:
        """The device, from the catalogue or by its memory. Raises BadInput for one that there is not."""
        if self.device == "here":
            # Here, because it loads torch.
            from weighbridge.planner.machine import this_device

            return this_device(self.device_memory)
        if self.device_memory is None:
            return find_device(self.device) if self.device else None
        if not 0 < self.device_memory < 1e6:
            raise BadInput("--device-memory must be above 0 GiB, such as 79.18")
        return custom_device(self.device_memory, self.device)

    def tensor_parallel(self, pp: int, dp: int) -> int:
        """--count alone means tensor parallelism over all devices."""
        tp = max((self.count or 1) // (pp * dp), 1) if self.tp is None else self.tp
        if self.count is not None and tp * pp * dp > self.count:
            raise BadInput(f"tp x pp x dp = {tp * pp * dp} needs more devices than --count {self.count}")
        return tp


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSettings:
    """The requests whose speed is told."""

    prompt_tokens: int | None = knob(
        None, f"Of the requests whose speed is told; none: {DEFAULT_PROMPT:,} if they fit.", min=1
    )
    output_tokens: int | None = knob(
        None, f"Of the requests whose speed is told; none: {DEFAULT_OUTPUT:,} if they fit.", min=1
    )
    batch: int | None = knob(None, "Requests at once; none: several.", min=1)
    price: float | None = knob(
        None,
        "USD per device-hour, instead of the list price.",
        flag=("--price", "--price-per-hour"),
        min=0,
    )

    def lengths(self, longest: int | None) -> tuple[int, int]:
        """Prompt and output as told, else the usual ones, shorter where only shorter requests are served."""
        prompt, output = self.prompt_tokens, self.output_tokens
        length = longest or DEFAULT_PROMPT + DEFAULT_OUTPUT
        told = (prompt or 1) + (output or 1)
        if longest is not None and told > longest:
            raise BadInput(
                f"requests of {told:,} tokens are longer than --max-model-len {longest}: shorten them"
            )
        output = output or max(min(DEFAULT_OUTPUT, (length - (prompt or 0)) // (1 if prompt else 5)), 1)
        return prompt or max(min(DEFAULT_PROMPT, length - output), 1), output


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What the cheapest deployment must carry, and how well."""

    recommend: bool = knob(False, "Find the cheapest deployment for --traffic.", flag="--recommend")
    traffic: Path | None = knob(None, "Trace: Azure CSV, Mooncake or plain JSONL.")
    slo: Slo = knob(
        Slo(1.0, 0.05, 0.95),
        "Objectives, such as ttft=500ms,tpot=50ms,p=99.",
        parse=lambda text: parse_slo(text, Slo()),
        written="ttft=1s,tpot=50ms,p=95",
    )
    simulate: bool = knob(True, "Confirm the best by simulation.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings:
    """Where the plan goes, and lists instead of one."""

    html: Path | None = knob(None, "Write the plan as a page.")
    list_devices: bool = knob(False, "Print the device catalogue.", flag="--list-devices")
    list_models: bool = knob(False, "Print the model catalogue.", flag="--list-models")
    json: bool = knob(False, "Print JSON.", flag="--json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDeployment(Deployment):
    """A deployment as it is asked for: what is left out is said, not what is there."""

    language_model_only: bool = knob(False, "Without encoders.", flag="--language-model-only")


@options
def plan(
    models: Annotated[
        list[str] | None, typer.Argument(help="config.json, directory, .gguf, or catalogue name.")
    ] = None,
    *,
    devices: DeviceSettings,
    deployment: PlannedDeployment,
    speed: SpeedSettings,
    search: SearchSettings,
    output: OutputSettings,
) -> None:
    """Work out memory, speed and cost of serving MODEL, and the smallest change that makes it fit."""
    if output.list_devices or output.list_models:
        _print_lists(output.list_devices, output.json)
        return
    if not models:
        raise BadInput("give a MODEL: a config.json, a directory, a .gguf file or a name (--list-models)")
    device = devices.found()
    speculative = deployment.speculative is not None
    deployment = replace(
        deployment,
        tp=devices.tensor_parallel(deployment.pp, deployment.dp),
        num_speculative_tokens=deployment.num_speculative_tokens or int(speculative),
        towers=not deployment.language_model_only and deployment.engine != "llama.cpp",
    )
    _check(deployment)
    if deployment.engine == "weighbridge":
        # Here, because it loads torch.
        from weighbridge.planner.machine import open_named, this_kind, with_file

        opened = [with_file(open_named(name)) for name in models]
        deployment = replace(deployment, cpu=deployment.cpu or kind_of_device(device) or this_kind())
    else:
        opened = [open_model(name) for name in models]
    if search.recommend or search.traffic:
        if search.traffic is None or len(opened) != 1:
            raise BadInput("--recommend takes one MODEL and needs --traffic TRACE")
        if speed.price is not None and device is None:
            raise BadInput("--price is that of one device: with --recommend give --device too")
        varied = _varied(devices, deployment, speed.price)
        _recommend(opened[0], deployment, traffic_of(read_rows(search.traffic)), varied, search, output)
    elif len(opened) > 1:
        if output.html is not None:
            raise BadInput("--html shows one model; leave it out when packing several")
        _pack(opened, deployment, device, devices.count, output)
    else:
        prompt, answer = speed.lengths(deployment.max_model_len)
        _single(
            _measured(plan_memory(opened[0], deployment, device)),
            _Shape(prompt, answer, speed.batch, speed.price),
            output,
        )


def _measured(result: MemoryPlan) -> MemoryPlan:
    """The plan with the speed that was measured of it on this machine, where that was done."""
    if result.own is None:
        return result
    # Here, because it loads torch.
    from weighbridge.planner.machine import measured_here

    return replace(result, measured=measured_here(result))


def _varied(devices: DeviceSettings, deployment: PlannedDeployment, price: float | None) -> Search:
    """What a search may change: all that was not said."""
    device = devices.found()
    kv = None if deployment.kv_dtype == "auto" else deployment.kv_dtype
    return Search([device] if device else None, devices.tp, deployment.weights, kv, devices.count, price)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The requests whose speed is told."""

    prompt: int
    output: int
    batch: int | None
    price: float | None


def _single(result: MemoryPlan, shape: _Shape, output: OutputSettings) -> None:
    speeds = _speeds(result, shape)
    fixes, command = changes(result), engine_command(result)
    if output.html is not None:
        _write(output.html, page(result, speeds, fixes, command))
    if output.json:
        print_json(plan_json(result, speeds, fixes, command))
    else:
        print_plan(result, speeds, fixes, command, Console())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--html: {path} cannot be written: {error.strerror or error}") from error


def _speeds(result: MemoryPlan, shape: _Shape) -> list[Speed]:
    """At one request, at what fits, and at powers of four between; none when nothing fits."""
    if result.device is None or not result.fits:
        return []
    room = typical_batch(result, shape.prompt, shape.output)
    if shape.batch is not None and shape.batch > room:
        raise BadInput(
            f"--batch {shape.batch}: only {room} requests of {shape.prompt} + {shape.output} tokens fit at once"
        )
    most = shape.batch or room
    batches = [shape.batch] if shape.batch else usual_batches(most)
    device, price = result.device, shape.price
    return [measure(result, device, batch, shape.prompt, shape.output, price) for batch in batches]


def _recommend(
    model: PlannedModel,
    deployment: Deployment,
    traffic: Traffic,
    varied: Search,
    search: SearchSettings,
    output: OutputSettings,
) -> None:
    choices = recommend_deployments(model, deployment, traffic, search.slo, varied)
    if search.simulate:
        choices = confirmed(choices, traffic, search.slo, varied, simulated)
    first = choices[0].candidate
    cost = step_cost(first.plan, first.device, decode_share(traffic.prompt, traffic.output))
    command = engine_command(first.plan)
    config = fleet_yaml(first.plan, cost, first.replicas, first.usd_per_hour)
    if output.html is not None:
        shape = _Shape(round(traffic.prompt), round(traffic.output), None, varied.usd_per_device_hour)
        _write(output.html, recommendation_page(choices, _speeds(first.plan, shape), command, config))
    if output.json:
        rows = [choice_json(choice) for choice in choices]
        print_json({"choices": rows, "command": command, "weighbridge_yaml": config})
    else:
        print_choices(choices[:10], command, config, Console())


def _pack(
    models: list[PlannedModel],
    deployment: Deployment,
    device: Device | None,
    count: int | None,
    output: OutputSettings,
) -> None:
    if device is None:
        raise BadInput("several models need --device, and --count when the box has more than one")
    placed = pack(models, deployment, device, count or 1)
    commands = [engine_command(item.plan, index) for index, item in enumerate(placed)]
    if output.json:
        print_json([placed_json(item, command) for item, command in zip(placed, commands, strict=True)])
    else:
        print_packing(placed, commands, Console())


def _check(deployment: Deployment) -> None:
    """Raise BadInput for a cache without room, a version that is none, and blocks that vLLM does not have."""
    memory, version, block_size = deployment.kv_cache_memory, deployment.version, deployment.block_size
    if memory is not None and memory <= 0:
        raise BadInput(f"--kv-cache-memory {memory}: write what the cache may take, such as 20GiB")
    if version is not None and parse_version(version) is None:
        raise BadInput(
            f"--engine-version {version!r} is no version: write for example 0.21.0, or b9496 of llama.cpp"
        )
    if (
        deployment.engine == "vllm"
        and block_size is not None
        and block_size not in (1, 8)
        and block_size % 16
    ):
        raise BadInput(f"--block-size {block_size}: vLLM has blocks of 1, 8, and multiples of 16 tokens")


def _print_lists(list_devices: bool, as_json: bool) -> None:
    if list_devices:
        rows: list[dict[str, Any]] = [
            {"name": d.name, "memory_gib": d.memory_gib, "bandwidth_gbs": d.bandwidth_gbs,
             "bf16_tflops": d.bf16_tflops, "usd_per_hour": d.usd_per_hour,
             "price_from": d.price_from or "estimate"} for d in devices()
        ]  # fmt: skip
    else:
        rows = [{"name": name, "model_type": c["model_type"]} for name, c in sorted(catalogue().items())]
    if as_json:
        print_json(rows)
        return
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
