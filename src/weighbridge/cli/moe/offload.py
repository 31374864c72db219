"""`weighbridge moe offload`: which experts stay on the fast device, and the flags that say so to other engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from weighbridge.cli.moe.inputs import ConfigFile, read_config, read_loads
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import print_json
from weighbridge.knobs import knob, parse_bytes
from weighbridge.planner.experts.layout import mixture_parameters
from weighbridge.planner.experts.offload import (
    OffloadMachine,
    engine_flags,
    keep_hottest,
    keep_last_layers,
    serving_bytes,
)
from weighbridge.planner.model.config_reader import read_architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadSettings:
    """The experts, and the two memories they may be in."""

    loads: Path | None = knob(None, "Measured tokens per expert; none: all alike.")
    context: int = knob(4096, "Tokens whose cache is on the fast device too.", min=1)
    kv_dtype: str = knob("f16", "bf16, q8_0 ...: how that cache is kept.")
    bits: float = knob(4.5, "Bits per weight.", min=1.0, max=32.0)
    fast: int = knob(10**12, "Bandwidth of the fast device, per second.", unit="bytes")
    slow: int = knob(60 * 10**9, "Bandwidth of main memory, per second.", unit="bytes")


@options
def offload_experts(
    config: ConfigFile,
    memory: Annotated[str, typer.Option(help="Memory of the fast device, such as 24GB.")],
    *,
    told: OffloadSettings,
    json_output: JsonOutput = False,
) -> None:
    """Choose which experts to keep on the fast device, and the flags that say so to other engines."""
    architecture = read_architecture(read_config(config))
    counted = mixture_parameters(architecture)
    reserved = serving_bytes(architecture, told.context, told.kv_dtype)
    machine = OffloadMachine(parse_bytes(memory), told.fast, told.slow, reserved_bytes=reserved)
    heat = read_loads(told.loads).loads if told.loads else None
    bytes_each = told.bits / 8
    hottest = keep_hottest(counted, bytes_each, heat, machine)
    by_layer = keep_last_layers(counted, bytes_each, heat, machine)
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
        "flags": engine_flags(hottest, counted, bytes_each),
    }
    if json_output:
        print_json(answer)
    else:
        _print_offload(answer)


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
