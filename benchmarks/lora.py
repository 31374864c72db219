"""What adapters cost: the base alone, a server with adapters that is asked for its base, and eight adapters at once.

    python benchmarks/lora.py [MODEL] [--adapters 8] [--rank 16] [--targets attention|all] [--clients 16] [--rounds 5]

Two engines in this process: one without adapters, one with random ones (their numbers do not matter to the time).
Each round sends the same requests to each arm in turn, in a closed loop of --clients; ratios are those of neighbours
in a round. Wall time is what clients see; CPU seconds are of all threads, so other work on the machine hardly matters
there, but threads that spin while they wait for each other count too. The aim is 15 % of the base's throughput.
The ratio of bytes is what a step would take longer if it waited for its weights and for nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from weighbridge.engine.api import Generation
from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.models.adapters.named import NamedAdapter
from weighbridge.models.adapters.peft_file import MatrixShape
from weighbridge.models.any_model import OpenedModel, open_model
from weighbridge.models.catalogue.store import resolve
from weighbridge.models.compute.decoder import Decoder

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")


@dataclass(frozen=True, slots=True)
class Load:
    clients: int
    requests: int
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Taken:
    wall: float
    cpu: float


def write_adapter(directory: Path, modules: Mapping[str, MatrixShape], rank: int, seed: int) -> Path:
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in modules.items():
        down = torch.randn(rank, shape.in_features, generator=generator) * 0.01
        up = torch.randn(shape.out_features, rank, generator=generator) * 0.01
        stem = f"base_model.model.{name}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


async def one(engine: LocalEngine, prompt: list[int], output: int, adapter: str) -> None:
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    async for _ in engine.submit(Generation(prompt, params, adapter=adapter)):
        pass


async def measured(engine: LocalEngine, load: Load, adapters: Sequence[str], seed: int) -> Taken:
    """Send the load in a closed loop; request i goes to adapter i, in turn."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(300, 900) for _ in range(load.prompt)] for _ in range(load.requests)]
    waiting = iter(list(enumerate(prompts)))

    async def client() -> None:
        for index, prompt in waiting:
            await one(engine, prompt, load.output, adapters[index % len(adapters)])

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(load.clients)))
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


async def rounds(
    plain: EngineReplica, adapted: EngineReplica, names: Sequence[str], load: Load, count: int
) -> None:
    arms: dict[str, tuple[LocalEngine, Sequence[str]]] = {
        "base alone": (plain.engine, [""]),
        "base, adapters idle": (adapted.engine, [""]),
        f"{len(names)} adapters": (adapted.engine, names),
    }
    if len(names) > 1:
        arms["one of them"] = (adapted.engine, names[:1])
    for replica in (plain, adapted):
        replica.engine.start()
    taken: dict[str, list[Taken]] = {arm: [] for arm in arms}
    try:
        for engine, asked in arms.values():
            await measured(engine, Load(load.clients, load.clients, load.prompt, 4), asked, -1)
        for number in range(count):
            for arm, (engine, asked) in arms.items():
                taken[arm].append(await measured(engine, load, asked, number))
    finally:
        for replica in (plain, adapted):
            replica.engine.stop()
    tokens, first = load.requests * load.output, taken["base alone"]
    for arm, each in taken.items():
        walls = [one.wall / base.wall for one, base in zip(each, first, strict=True)]
        cpus = [one.cpu / base.cpu for one, base in zip(each, first, strict=True)]
        speed = tokens / statistics.median(one.wall for one in each)
        cpu = statistics.median(one.cpu for one in each) / tokens * 1e3
        print(
            f"{arm:20} {speed:8.1f} tok/s  {cpu:7.2f} ms of CPU a token   wall {statistics.median(walls):.3f}x "
            f"({min(walls):.3f} to {max(walls):.3f})   CPU {statistics.median(cpus):.3f}x "
            f"({min(cpus):.3f} to {max(cpus):.3f})",
            flush=True,
        )


def targeted(opened: OpenedModel, targets: str) -> dict[str, MatrixShape]:
    """The matrices that adapters on `targets`, attention or all, add to."""
    every = targets == "all"
    return {n: shape for n, shape in opened.adaptable().items() if every or n.rpartition(".")[2] in ATTENTION}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", choices=("attention", "all"), default="all")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", default="auto")
    args = parser.parse_args()
    path = resolve(args.model)
    modules = targeted(open_model(path), args.targets)
    settings = {
        "dtype": args.dtype,
        "quantize": args.quantize,
        "kv_cache_memory": 512 << 20,
        "max_model_len": 1024,
    }
    with tempfile.TemporaryDirectory() as home:
        names = [f"adapter-{number}" for number in range(args.adapters)]
        lora = tuple(
            NamedAdapter(name, write_adapter(Path(home) / name, modules, args.rank, seed))
            for seed, name in enumerate(names)
        )
        plain = build_replica(path, "base", EngineSettings(**settings, speculate=False))
        bounds = {"max_loras": len(lora), "max_lora_rank": args.rank}
        adapted = build_replica(
            path, "base", EngineSettings(**settings, **bounds, speculate=False, lora=lora)
        )
    share = adapted.engine.adapters()[0].share
    print(
        f"{path.name}, {adapted.decoder.dtype}, kernels {adapted.decoder.kernels.name}, "
        f"{torch.get_num_threads()} threads; "
        f"{len(names)} adapters of rank {args.rank} on {args.targets}: {share:.2%} of the base's parameters each; "
        f"{args.clients} clients, {args.requests} requests of {args.prompt} and {args.output} tokens"
    )
    own = plain.decoder.weights.nbytes if isinstance(plain.decoder, Decoder) else 0
    shapes = sum(shape.in_features + shape.out_features for shape in modules.values())
    read = len(names) * args.rank * shapes * adapted.decoder.dtype.itemsize
    if own:
        print(
            f"bytes of the base {own / 1e6:.0f} MB, of the adapters {read / 1e6:.0f}: {1 + read / own:.3f}x"
        )
    load = Load(args.clients, args.requests, args.prompt, args.output)
    asyncio.run(rounds(plain, adapted, names, load, args.rounds))


if __name__ == "__main__":
    main()
