"""What models take when they are served here, worked out by the planner in a process of its own.

    echo '[{"target": "/models/a", "options": ["--quantize", "int8"]}]' | python -m weighbridge.cli.serve.sizes

The planner asks this machine what its kernels are, which loads torch: a gateway does not, so it asks this program.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from weighbridge.cost.hardware import GIB
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.knobs import Knob, knobs, settings_from

#: Seconds in which the sizes of all models are worked out: their headers are read, nothing else of them.
PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class SizedReplica:
    """What one replica takes in bytes, at most: `fixed` without its cache, `request` for its longest request, and
    `most` for all the requests that it runs at a time. `problem`: why that is not known."""

    fixed: int = 0
    request: int = 0
    most: int = 0
    pool: int | None = None  # as its options say
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaToSize:
    """A replica by its model's path and the options of `weighbridge serve` that it is started with."""

    target: str
    options: tuple[str, ...]


def sizes_of(replicas: Sequence[ReplicaToSize]) -> list[SizedReplica]:
    """Ask a process for the sizes. Raises WeighbridgeError where it fails as a whole."""
    asked = msgspec.json.encode([asdict(one) for one in replicas])
    command = [sys.executable, "-m", "weighbridge.cli.serve.sizes"]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise WeighbridgeError(f"the sizes of the models were not known within {PATIENCE:g} s") from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise WeighbridgeError(f"the sizes of the models cannot be worked out: {' '.join(last)}") from error
    return msgspec.json.decode(done.stdout, type=list[SizedReplica])


def engine_settings(words: Sequence[str]) -> EngineSettings:
    """What options of `weighbridge serve` say about the engine; those of the server are passed over.

    Raises BadInput for values that cannot be.
    """
    by_flag: dict[str, Knob] = {}
    for one in knobs(EngineSettings):
        by_flag |= {side: one for flag in one.flags for side in flag.split("/")}
    values: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        flag, given, text = word.partition("=")
        found = by_flag.get(flag)
        if found is None:
            continue
        if found.kind is bool:
            values[found.key] = not flag.startswith("--no-")
            continue
        text = text if given else next(rest, "")
        try:
            read = found.kind(text)
        except ValueError:
            raise BadInput(f"{flag} {text!r} is no {found.kind.__name__}") from None
        values[found.key] = [*values.get(found.key, ()), read] if found.repeats else read
    return settings_from(EngineSettings, values)


def _sized(target: str, options: Sequence[str]) -> SizedReplica:
    # Here, because they load torch: only the process that is asked for sizes needs them.
    from weighbridge.planner.machine import open_named, this_device, this_kind, with_file
    from weighbridge.planner.memory.memory import plan_memory
    from weighbridge.planner.memory.request import Deployment

    try:
        settings = engine_settings(options)
        deployment = Deployment(
            engine="weighbridge",
            quantize=settings.quantize,
            dtype=settings.dtype,
            cpu=this_kind(),
            kv_dtype=settings.kv_dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_sequences,
            max_num_batched_tokens=settings.max_batch_tokens,
            block_size=settings.block_size,
        )
        plan = plan_memory(with_file(open_named(target)), deployment, replace(this_device(), memory_gib=1e6))
    except BadInput as error:
        return SizedReplica(problem=str(error))
    over, cache = plan.overheads, plan.kv
    assert cache is not None  # a device was given
    fixed = plan.weights.high + over.framework.high + over.activation.high
    request = round(cache.request_bytes)
    most = request * settings.max_sequences
    return SizedReplica(round(fixed * GIB), request, most, settings.kv_cache_memory)


def _answered(asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [asdict(_sized(one["target"], one["options"])) for one in asked]


if __name__ == "__main__":
    json.dump(_answered(json.load(sys.stdin)), sys.stdout)
