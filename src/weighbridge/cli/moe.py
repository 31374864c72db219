"""`weighbridge moe`: make, measure, place and offload mixtures of experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import DownloadBar, counting, print_json
from weighbridge.errors import BadInput

JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigFile = Annotated[Path, typer.Argument(help="A config.json, or a directory that holds one.")]

#: A skewed router is measured on this many tokens of the repository's own words.
CALIBRATION_TOKENS = 512


def upcycle_model(
    model: Annotated[str, typer.Argument(help="A dense model: name, directory or .gguf file.")],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    experts: Annotated[int, typer.Option(help="Experts of each layer.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts of each token.")] = 2,
    noise: Annotated[
        float, typer.Option(help="What is added to each expert, as a share of the matrices' own deviation.")
    ] = 0.0,
    skew: Annotated[float, typer.Option(help="Uneven use of the experts: exponent of a power law.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of noise and router.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or source: as the model stores them.")] = (
        "source"
    ),
    json_output: JsonOutput = False,
) -> None:
    """Turn a dense model into a mixture of experts by copying its feed-forward blocks."""
    from weighbridge.models.compute.loader import choose_dtype
    from weighbridge.models.experts.upcycle import Upcycling, upcycle
    from weighbridge.models.files.checkpoint import open_checkpoint
    from weighbridge.models.files.store import resolve

    path = resolve(model, progress=DownloadBar("Pulling the model"))
    options = Upcycling(experts, top_k, noise, skew, seed, None if dtype == "source" else choose_dtype(dtype))
    options.check()
    tokens = _calibration_text(path) if skew else []
    with counting("Writing layers", quiet=json_output) as report:
        upcycle(open_checkpoint(path), out, options, tokens, report)
    answer = _parameters(out)
    if json_output:
        print_json({"out": str(out), **answer})
        return
    Console().print(
        f"{out}: {answer['total'] / 1e6:.0f} M parameters, {answer['active'] / 1e6:.0f} M of them active; "
        f"`weighbridge serve {out}` runs it",
        soft_wrap=True,
    )


def _calibration_text(path: Path) -> list[int]:
    import random

    from weighbridge.bench.prompts import WORDS
    from weighbridge.models.text.tokenizer import load_tokenizer

    words = random.Random(0).choices(WORDS, k=CALIBRATION_TOKENS)
    return load_tokenizer(path).encode(" ".join(words))[:CALIBRATION_TOKENS]


def parameters(config: ConfigFile, json_output: JsonOutput = False) -> None:
    """Count total and active parameters of a mixture of experts from its config.json."""
    answer = _parameters(config)
    if json_output:
        print_json(answer)
        return
    table = Table("part", "parameters")
    for name, value in answer.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)


def _parameters(config: Path) -> dict[str, int]:
    from weighbridge.planner.experts.layout import count_parameters

    counted = count_parameters(_config(config))
    return {
        "total": counted.total,
        "active": counted.active,
        "resident": counted.resident,
        "routed_experts": counted.routed,
        "one_expert": counted.expert,
        "sparse_layers": counted.sparse_layers,
        "experts": counted.experts,
        "top_k": counted.top_k,
    }


def _config(path: Path) -> dict[str, Any]:
    from weighbridge.models.files.hf_config import read_json

    return read_json(path / "config.json" if path.is_dir() else path)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{what} {path} cannot be read: {error}") from error


def place_experts(
    loads: Annotated[Path, typer.Option(help="Tokens per expert: JSON or CSV, or what /v1/experts answers.")],
    gpus: Annotated[int, typer.Option(help="Devices that share the experts.")],
    nodes: Annotated[int, typer.Option(help="Machines the GPUs are in.")] = 1,
    groups: Annotated[int, typer.Option(help="Groups of experts that are routed together.")] = 1,
    replicas: Annotated[
        int | None, typer.Option(help="Expert slots in all; none: one per expert, filled up to the GPUs.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="eplb: DeepSeek's algorithm. balance: improved by local search.")
    ] = "eplb",
    current: Annotated[
        Path | None, typer.Option(help="What the slots hold now: JSON with physical_to_logical.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(help="Size of one expert of one layer; none: DeepSeek-V3's, 44 MB.")
    ] = None,
    expert_ms: Annotated[
        float | None,
        typer.Option(min=0.0, help="Time of all experts in a step, in ms, to tell when moving pays."),
    ] = None,
    link: Annotated[str, typer.Option(help="What a GPU can fetch in a second.")] = "50GB",
    json_output: JsonOutput = False,
) -> None:
    """Place experts on GPUs so that measured loads spread evenly."""
    from weighbridge.knobs import parse_bytes
    from weighbridge.planner.experts.placement import Devices
    from weighbridge.planner.experts.report import DEEPSEEK_V3_EXPERT_BYTES, parse_loads, place

    measured = parse_loads(_text(loads, "--loads"), str(loads))
    experts = measured.loads.shape[1]
    slots = replicas if replicas is not None else -(-experts // max(gpus, 1)) * gpus
    answer = place(
        measured,
        Devices(gpus, slots, nodes, groups),
        method=method,
        current=_current(current, experts) if current else None,
        expert_bytes=parse_bytes(expert_bytes) if expert_bytes else DEEPSEEK_V3_EXPERT_BYTES,
        expert_seconds=None if expert_ms is None else expert_ms / 1e3,
        bytes_per_second=parse_bytes(link),
    )
    if json_output:
        print_json(answer)
        return
    _print_placement(answer, gpus)


def _current(path: Path, experts: int) -> Any:
    import numpy as np

    from weighbridge.planner.experts.placement import Placement

    try:
        value = json.loads(_text(path, "--current"))
        rows = np.array(value["physical_to_logical"] if isinstance(value, dict) else value, dtype=np.int64)
    except (KeyError, ValueError, TypeError):
        raise BadInput(f"{path} must hold physical_to_logical: a list of expert numbers per layer") from None
    if rows.ndim != 2 or rows.size == 0 or rows.min() < 0:
        raise BadInput(f"{path} must hold physical_to_logical: a list of expert numbers per layer")
    return Placement.of(rows, experts)


def _print_placement(answer: dict[str, Any], gpus: int) -> None:
    console = Console()
    table = Table("layer", "balancedness", *(f"GPU {index}" for index in range(min(gpus, 8))))
    for index, row in enumerate(answer["physical_to_logical"]):
        slots = len(row) // gpus
        cells = (" ".join(map(str, row[gpu * slots : (gpu + 1) * slots])) for gpu in range(min(gpus, 8)))
        table.add_row(str(index), f"{answer['balancedness_per_layer'][index]:.3f}", *cells)
    console.print(table)
    if gpus > 8:
        console.print(f"[dim]GPUs 8 to {gpus - 1} are in --json[/]")
    console.print(
        f"balancedness {answer['balancedness_before']:.3f} before, [bold]{answer['balancedness_after']:.3f}[/] "
        f"after; {answer['moved_bytes'] / 1e9:.2f} GB to move, "
        f"{answer['redundant_bytes_per_gpu'] / 1e9:.2f} GB of redundant experts per GPU",
        soft_wrap=True,
    )
    steps = answer.get("pays_after_steps")
    if steps is not None:
        console.print(f"moving takes {answer['moving_seconds']:.2f} s and pays after {steps:,.0f} steps")
    elif "pays_after_steps" in answer:
        console.print("the new placement is not faster: stay with the current one")


def offload_experts(
    config: ConfigFile,
    memory: Annotated[str, typer.Option(help="Memory of the fast device for weights, such as 24GB.")],
    loads: Annotated[Path | None, typer.Option(help="Measured tokens per expert; none: all alike.")] = None,
    bits: Annotated[float, typer.Option(min=1.0, max=32.0, help="Bits per weight.")] = 4.5,
    fast: Annotated[str, typer.Option(help="Bandwidth of the fast device, per second.")] = "1TB",
    slow: Annotated[str, typer.Option(help="Bandwidth of main memory, per second.")] = "60GB",
    json_output: JsonOutput = False,
) -> None:
    """Choose which experts to keep on the fast device, and the flags that say so to other engines."""
    from weighbridge.knobs import parse_bytes
    from weighbridge.planner.experts.layout import count_parameters
    from weighbridge.planner.experts.offload import Machine, engine_flags, keep_hottest, keep_last_layers
    from weighbridge.planner.experts.report import parse_loads

    fields = _config(config)
    counted = count_parameters(fields)
    machine = Machine(parse_bytes(memory), parse_bytes(fast), parse_bytes(slow))
    heat = parse_loads(_text(loads, "--loads"), str(loads)).loads if loads else None
    hottest = keep_hottest(counted, bits / 8, heat, machine)
    by_layer = keep_last_layers(counted, bits / 8, heat, machine)
    first = int(fields.get("first_k_dense_replace") or 0)
    answer = {
        "experts_kept": int(hottest.kept.sum()),
        "experts": counted.sparse_layers * counted.experts,
        "hit_rate": hottest.hit_rate,
        "tokens_per_second": hottest.tokens_per_second,
        "tokens_per_second_by_layer": by_layer.tokens_per_second,
        "hit_rate_by_layer": by_layer.hit_rate,
        "kept_per_layer": hottest.kept.sum(axis=1).tolist(),
        "kept": [row.nonzero()[0].tolist() for row in hottest.kept],
        "flags": engine_flags(hottest, counted.routed * bits / 8, first),
    }
    if json_output:
        print_json(answer)
        return
    console = Console()
    console.print(
        f"{answer['experts_kept']:,} of {answer['experts']:,} experts fit; {hottest.hit_rate:.1%} of a token's "
        f"experts are found there: [bold]{hottest.tokens_per_second:.1f} tokens/s[/] predicted "
        f"({by_layer.tokens_per_second:.1f} when whole layers are kept)",
        soft_wrap=True,
    )
    llama = answer["flags"]["llama.cpp"]
    console.print(f"llama.cpp: --n-cpu-moe {llama['n_cpu_moe']}", soft_wrap=True, highlight=False)
    if llama["override_tensor"]:
        console.print(
            f'       or: -ot "{llama["override_tensor"]}"', soft_wrap=True, highlight=False, markup=False
        )
    kt = answer["flags"]["ktransformers"]["kt-num-gpu-experts"]
    console.print(
        f"KTransformers: --kt-num-gpu-experts {kt} --kt-expert-placement-strategy frequency", soft_wrap=True
    )
    console.print(f"vLLM: --cpu-offload-gb {answer['flags']['vllm']['cpu-offload-gb']}")
