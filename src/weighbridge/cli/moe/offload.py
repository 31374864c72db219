"""`weighbridge moe offload`: which experts stay on the fast device, and the flags that say so to other engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from weighbridge.cli.moe.inputs import read_loads
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput
from weighbridge.knobs import knob, parse_bytes
from weighbridge.planner.experts.layout import Parameters, mixture_parameters
from weighbridge.planner.experts.offload import (
    MixtureBytes,
    OffloadMachine,
    engine_flags,
    keep_hottest,
    keep_last_layers,
    serving_bytes,
)
from weighbridge.planner.memory.gguf_mix import gguf_bytes
from weighbridge.planner.memory.memory import PlannedModel
from weighbridge.planner.memory.source import open_model

#: Bits of a weight where nothing says how many there are.
USUAL_BITS = 4.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadSettings:
    """The experts, and the two memories they may be in."""

    loads: Path | None = knob(None, "Measured tokens per expert; none: all alike.")
    context: int = knob(4096, "Tokens whose cache is on the fast device too.", min=1)
    kv_dtype: str = knob("f16", "bf16, q8_0 ...: how that cache is kept.")
    weights: str | None = knob(None, "A type of GGUF file, such as q4_k_m, whose layers differ in size.")
    bits: float | None = knob(
        None, "Bits per weight; none: as a .gguf file has them, else 4.5.", min=1.0, max=32.0
    )
    fast: int = knob(10**12, "Bandwidth of the fast device, per second.", unit="bytes")
    slow: int = knob(60 * 10**9, "Bandwidth of main memory, per second.", unit="bytes")


@options
def offload_experts(
    model: Annotated[
        Path, typer.Argument(help="A config.json, a directory that holds one, or a .gguf file.")
    ],
    memory: Annotated[str, typer.Option(help="Memory of the fast device, such as 24GB.")],
    *,
    told: OffloadSettings,
    json_output: JsonOutput = False,
) -> None:
    """Choose which experts to keep on the fast device, and the flags that say so to other engines."""
    opened = open_model(str(model))
    architecture = opened.architecture
    counted = mixture_parameters(architecture)
    sizes = _sizes(opened, counted, told)
    reserved = serving_bytes(architecture, told.context, told.kv_dtype)
    machine = OffloadMachine(parse_bytes(memory), told.fast, told.slow, reserved_bytes=reserved)
    heat = read_loads(told.loads).loads if told.loads else None
    hottest = keep_hottest(counted, sizes, heat, machine)
    by_layer = keep_last_layers(counted, sizes, heat, machine)
    answer = {
        "experts_kept": int(hottest.kept.sum()),
        "experts": counted.sparse_layers * counted.experts,
        "hit_rate": hottest.hit_rate,
        "tokens_per_second": hottest.tokens_per_second,
        "tokens_per_second_by_layer": by_layer.tokens_per_second,
        "hit_rate_by_layer": by_layer.hit_rate,
        "kept_per_layer": hottest.kept.sum(axis=1).tolist(),
        "kept": [row.nonzero()[0].tolist() for row in hottest.kept],
        "cache_and_buffer_bytes": round(reserved),
        "flags": engine_flags(hottest, counted, sizes, machine),
    }
    if json_output:
        print_json(answer)
    else:
        _print_offload(answer)


def _sizes(opened: PlannedModel, counted: Parameters, told: OffloadSettings) -> MixtureBytes:
    """Bytes by what was asked for, else by the file. Raises BadInput."""
    if told.weights is not None:
        if told.bits is not None:
            raise BadInput("--weights says how many bits there are; leave --bits out", param="bits")
        tensors = {t: float(size) for t, size in gguf_bytes(opened.architecture, told.weights).items()}
        return MixtureBytes.stored(counted, tensors, opened.architecture)
    if told.bits is None and opened.stored is not None and opened.source.endswith(".gguf"):
        return MixtureBytes.stored(counted, opened.stored.tensors, opened.architecture)
    return MixtureBytes.even(counted, told.bits if told.bits is not None else USUAL_BITS)


def _print_offload(answer: dict[str, Any]) -> None:
    console, flags = Console(), answer["flags"]
    console.print(
        f"{answer['experts_kept']:,} of {answer['experts']:,} experts fit; {answer['hit_rate']:.1%} of a token's "
        f"experts are found there: [bold]{answer['tokens_per_second']:.1f} tokens/s[/] predicted "
        f"({answer['tokens_per_second_by_layer']:.1f} when whole layers are kept)",
        soft_wrap=True,
    )
    llama = flags["llama.cpp"]
    console.print(f"llama.cpp: --n-cpu-moe {llama['n_cpu_moe']}", soft_wrap=True, highlight=False)
    if llama["override_tensor"]:
        tensors = f'       or: -ot "{llama["override_tensor"]}"'
        console.print(tensors, soft_wrap=True, highlight=False, markup=False)
    kept = flags["ktransformers"]["kt-num-gpu-experts"]
    console.print(
        f"KTransformers: --kt-num-gpu-experts {kept} --kt-expert-placement-strategy frequency", soft_wrap=True
    )
    console.print(f"vLLM: --cpu-offload-gb {flags['vllm']['cpu-offload-gb']}")
