"""`weighbridge plan`: what fits, how fast it runs, what it costs, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import print_json
from weighbridge.cost.hardware import Device, custom_device, devices, find_device
from weighbridge.cost.roofline import decode_share
from weighbridge.errors import BadInput
from weighbridge.knobs import parse_bytes
from weighbridge.planner.memory.engines import parse_version
from weighbridge.planner.memory.fit import changes
from weighbridge.planner.memory.memory import MemoryPlan, Model, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.model.catalogue import catalogue
from weighbridge.planner.report.html import page
from weighbridge.planner.report.printing import print_choices, print_packing, print_plan
from weighbridge.planner.report.report import choice_json, placed_json, plan_json
from weighbridge.planner.search.commands import engine_command, fleet_yaml
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
)
from weighbridge.workload.slo import Slo, parse_slo
from weighbridge.workload.traces import read_rows
from weighbridge.workload.traffic import traffic_of

Flag = typer.Option


def plan(
    models: Annotated[
        list[str] | None, typer.Argument(help="config.json, directory, .gguf, or catalogue name.")
    ] = None,
    device: Annotated[str | None, Flag(help="A device of the catalogue, such as H100-80GB.")] = None,
    count: Annotated[int | None, Flag(min=1, help="Devices there are.")] = None,
    tp: Annotated[
        int | None, Flag("--tp", "--tensor-parallel-size", min=1, help="Tensor parallelism.")
    ] = None,
    pp: Annotated[int, Flag(min=1, help="Pipeline parallelism.")] = 1,
    ep: Annotated[int, Flag(min=1, help="Expert parallelism: tp x dp, or 1.")] = 1,
    dp: Annotated[int, Flag(min=1, help="Data parallelism.")] = 1,
    dcp: Annotated[int, Flag(min=1, help="Decode context parallelism.")] = 1,
    engine: Annotated[str, Flag(help="vllm, sglang, llama.cpp or weighbridge.")] = "vllm",
    engine_version: Annotated[str | None, Flag(help="Rules of this version; none: a recent one.")] = None,
    weights: Annotated[
        str | None, Flag(help="bf16, fp8, awq, nvfp4, q4_k_m ...; none: as published.")
    ] = None,
    kv_dtype: Annotated[
        str, Flag("--kv-dtype", "--kv-cache-dtype", help="bf16, fp8, int8, q8_0 ...")
    ] = "auto",
    max_model_len: Annotated[
        int | None,
        Flag("--max-model-len", "--context-length", "-c", min=1, help="Longest request in tokens."),
    ] = None,
    concurrency: Annotated[int | None, Flag(min=1, help="Full-length requests wanted at once.")] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        Flag("--gpu-memory-utilization", "--mem-fraction-static", help="Share of memory the engine takes."),
    ] = None,
    max_num_seqs: Annotated[int | None, Flag(min=1, help="Requests in a batch; llama.cpp: slots.")] = None,
    max_num_batched_tokens: Annotated[int | None, Flag(min=1, help="Tokens in a batch.")] = None,
    block_size: Annotated[int | None, Flag(min=1, help="Tokens of a cache block.")] = None,
    kv_cache_memory: Annotated[
        str | None, Flag(help="Cache per GPU, such as 20GiB, instead of what is left.")
    ] = None,
    device_memory: Annotated[float | None, Flag(help="GiB that the driver shows, where known.")] = None,
    prefix_caching: Annotated[bool | None, Flag("--prefix-caching/--no-prefix-caching")] = None,
    enforce_eager: Annotated[bool, Flag("--enforce-eager", help="No CUDA graphs.")] = False,
    speculative: Annotated[str | None, Flag(help="mtp or eagle: draft layers join the cache.")] = None,
    num_speculative_tokens: Annotated[int, Flag(min=0)] = 0,
    lora_rank: Annotated[int, Flag(min=0, help="Largest adapter rank.")] = 0,
    max_loras: Annotated[int, Flag(min=0, help="Adapters in memory at once.")] = 0,
    language_model_only: Annotated[bool, Flag("--language-model-only", help="Without encoders.")] = False,
    gpu_layers: Annotated[int | None, Flag("--gpu-layers", "-ngl", min=0, help="llama.cpp.")] = None,
    n_cpu_moe: Annotated[int, Flag(min=0, help="llama.cpp: layers whose experts stay in host memory.")] = 0,
    kv_unified: Annotated[bool | None, Flag("--kv-unified/--no-kv-unified", help="llama.cpp.")] = None,
    swa_full: Annotated[bool, Flag("--swa-full", help="Keep sliding layers in full.")] = False,
    flash_attn: Annotated[bool | None, Flag("--flash-attn/--no-flash-attn", help="llama.cpp.")] = None,
    ubatch: Annotated[int, Flag(min=1, help="llama.cpp micro-batch.")] = 512,
    prompt_tokens: Annotated[
        int | None,
        Flag(min=1, help=f"Of the requests whose speed is told; none: {DEFAULT_PROMPT:,} if they fit."),
    ] = None,
    output_tokens: Annotated[
        int | None,
        Flag(min=1, help=f"Of the requests whose speed is told; none: {DEFAULT_OUTPUT:,} if they fit."),
    ] = None,
    batch: Annotated[int | None, Flag(min=1, help="Requests at once; none: several.")] = None,
    price: Annotated[
        float | None,
        Flag("--price", "--price-per-hour", min=0, help="USD per device-hour, instead of the list price."),
    ] = None,
    recommend: Annotated[
        bool, Flag("--recommend", help="Find the cheapest deployment for --traffic.")
    ] = False,
    traffic: Annotated[Path | None, Flag(help="Trace: Azure CSV, Mooncake or plain JSONL.")] = None,
    slo: Annotated[
        str, Flag(help="Objectives, such as ttft=500ms,tpot=50ms,p=99.")
    ] = "ttft=1s,tpot=50ms,p=95",
    simulate: Annotated[
        bool, Flag("--simulate/--no-simulate", help="Confirm the best by simulation.")
    ] = True,
    html: Annotated[Path | None, Flag(help="Write the plan as a page.")] = None,
    list_devices: Annotated[bool, Flag("--list-devices", help="Print the device catalogue.")] = False,
    list_models: Annotated[bool, Flag("--list-models", help="Print the model catalogue.")] = False,
    json_output: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Work out memory, speed and cost of serving MODEL, and the smallest change that makes it fit."""
    if list_devices or list_models:
        _print_lists(list_devices, json_output)
        return
    if not models:
        raise BadInput("give a MODEL: a config.json, a directory, a .gguf file or a name (--list-models)")
    chosen = _device(device, device_memory)
    deployment = Deployment(
        engine=engine,
        version=engine_version,
        tp=_tensor_parallel(tp, count, pp, dp),
        pp=pp,
        dp=dp,
        ep=ep,
        dcp=dcp,
        weights=weights,
        kv_dtype=kv_dtype,
        max_model_len=max_model_len,
        concurrency=concurrency,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        kv_cache_memory=_cache_bytes(kv_cache_memory),
        prefix_caching=prefix_caching,
        enforce_eager=enforce_eager,
        speculative=speculative,
        num_speculative_tokens=num_speculative_tokens or int(speculative is not None),
        lora_rank=lora_rank,
        max_loras=max_loras,
        towers=not language_model_only and engine != "llama.cpp",
        host_experts=n_cpu_moe,
        gpu_layers=gpu_layers,
        unified_kv=kv_unified,
        swa_full=swa_full,
        flash_attention=flash_attn,
        ubatch=ubatch,
    )
    _check_engine(engine, engine_version, block_size)
    opened = [open_model(name) for name in models]
    if recommend or traffic:
        _recommend(
            opened,
            deployment,
            chosen,
            traffic,
            slo,
            _Varied(tp, count, weights, kv_dtype, simulate, price),
            html,
            json_output,
        )
    elif len(opened) > 1:
        if html is not None:
            raise BadInput("--html shows one model; leave it out when packing several")
        _pack(opened, deployment, chosen, count, json_output)
    else:
        shape = _shape(prompt_tokens, output_tokens, batch, price, max_model_len)
        _single(opened[0], deployment, chosen, shape, html, json_output)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What speed is asked for."""

    prompt: int
    output: int
    batch: int | None
    price: float | None


def _shape(
    prompt: int | None, output: int | None, batch: int | None, price: float | None, longest: int | None
) -> _Shape:
    """Lengths as given, else the usual ones, shorter where only shorter requests are served."""
    length = longest or DEFAULT_PROMPT + DEFAULT_OUTPUT
    asked = (prompt or 1) + (output or 1)
    if longest is not None and asked > longest:
        raise BadInput(
            f"requests of {asked:,} tokens are longer than --max-model-len {longest}: shorten them"
        )
    output = output or max(min(DEFAULT_OUTPUT, (length - (prompt or 0)) // (1 if prompt else 5)), 1)
    prompt = prompt or max(min(DEFAULT_PROMPT, length - output), 1)
    return _Shape(prompt, output, batch, price)


@dataclass(frozen=True, slots=True)
class _Varied:
    """What the user fixed of what a search would vary."""

    tp: int | None
    count: int | None
    weights: str | None
    kv_dtype: str
    simulate: bool
    price: float | None


def _single(
    model: Model,
    deployment: Deployment,
    device: Device | None,
    shape: _Shape,
    html: Path | None,
    as_json: bool,
) -> None:
    result = plan_memory(model, deployment, device)
    speeds = _speeds(result, shape)
    found, command = changes(result), engine_command(result)
    if html is not None:
        _write(html, page(result, speeds, found, command))
    if as_json:
        print_json(plan_json(result, speeds, found, command))
    else:
        print_plan(result, speeds, found, command, Console())


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
    batches = [shape.batch] if shape.batch else sorted({1, most, *(4**k for k in range(1, 6) if 4**k < most)})
    device, price = result.device, shape.price
    return [measure(result, device, batch, shape.prompt, shape.output, price) for batch in batches]


def _recommend(
    models: list[Model],
    deployment: Deployment,
    device: Device | None,
    trace: Path | None,
    slo: str,
    varied: _Varied,
    html: Path | None,
    as_json: bool,
) -> None:
    if trace is None or len(models) != 1:
        raise BadInput("--recommend takes one MODEL and needs --traffic TRACE")
    if varied.price is not None and device is None:
        raise BadInput("--price is that of one device: with --recommend give --device too")
    kv = None if varied.kv_dtype == "auto" else varied.kv_dtype
    search = Search([device] if device else None, varied.tp, varied.weights, kv, varied.count, varied.price)
    traffic = traffic_of(read_rows(trace))
    objectives = parse_slo(slo, Slo())
    choices = recommend_deployments(models[0], deployment, traffic, objectives, search)
    if varied.simulate:
        choices = confirmed(choices, traffic, objectives, search, simulated)
    first = choices[0].candidate
    cost = step_cost(first.plan, first.device, decode_share(traffic.prompt, traffic.output))
    command = engine_command(first.plan)
    config = fleet_yaml(first.plan, cost, first.replicas, first.usd_per_hour)
    if html is not None:
        shape = _Shape(round(traffic.prompt), round(traffic.output), None, varied.price)
        _write(html, page(first.plan, _speeds(first.plan, shape), [], command))
    if as_json:
        found = [choice_json(choice) for choice in choices]
        print_json({"choices": found, "command": command, "weighbridge_yaml": config})
    else:
        print_choices(choices[:10], command, config, Console())


def _pack(
    models: list[Model], deployment: Deployment, device: Device | None, count: int | None, as_json: bool
) -> None:
    if device is None:
        raise BadInput("several models need --device, and --count when the box has more than one")
    placed = pack(models, deployment, device, count or 1)
    commands = [engine_command(one.plan) for one in placed]
    if as_json:
        print_json([placed_json(one, command) for one, command in zip(placed, commands, strict=True)])
    else:
        print_packing(placed, commands, Console())


def _cache_bytes(text: str | None) -> int | None:
    size = None if text is None else parse_bytes(text)
    if size is not None and size <= 0:
        raise BadInput(f"--kv-cache-memory {text}: write what the cache may take, such as 20GiB")
    return size


def _check_engine(engine: str, version: str | None, block_size: int | None) -> None:
    """Raises BadInput for a version that is none, and blocks that vLLM does not have."""
    if version is not None and parse_version(version) is None:
        raise BadInput(
            f"--engine-version {version!r} is no version: write for example 0.21.0, or b9496 of llama.cpp"
        )
    if engine == "vllm" and block_size is not None and block_size not in (1, 8) and block_size % 16:
        raise BadInput(f"--block-size {block_size}: vLLM has blocks of 1, 8, and multiples of 16 tokens")


def _device(name: str | None, memory: float | None) -> Device | None:
    if memory is not None and not 0 < memory < 1e6:
        raise BadInput("--device-memory must be above 0 GiB, such as 79.18")
    if memory is not None:
        return custom_device(memory, name)
    return find_device(name) if name else None


def _tensor_parallel(tp: int | None, count: int | None, pp: int, dp: int) -> int:
    """--count alone means tensor parallelism over all devices."""
    if tp is None:
        tp = max((count or 1) // (pp * dp), 1)
    if count is not None and tp * pp * dp > count:
        raise BadInput(f"tp x pp x dp = {tp * pp * dp} needs more devices than --count {count}")
    return tp


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
