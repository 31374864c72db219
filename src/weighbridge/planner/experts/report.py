"""What `weighbridge moe place` answers: a placement, what it gains, what it moves and when that pays."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.planner.experts.layout import replacement
from weighbridge.planner.experts.local_search import balance, colocation
from weighbridge.planner.experts.placement import (
    Devices,
    ExpertPlacement,
    Floats,
    balancedness,
    check_loads,
    eplb,
    moved_slots,
    static_placement,
)

#: One expert of one layer of DeepSeek-V3 in FP8: 3 x 7168 x 2048. Used where nobody says how large an expert is.
DEEPSEEK_V3_EXPERT_BYTES = 44_040_192

METHODS = ("balance", "eplb")


@dataclass(frozen=True, slots=True)
class Loads:
    """Tokens per expert [layers, experts], and how often two experts were used by one token, if measured."""

    loads: Floats
    coactivation: Floats | None = None


def parse_loads(text: str, name: str) -> Loads:
    """Read loads from JSON or CSV: a matrix of layers x experts, or an object that holds one.

    An object may be what `/v1/experts` answers, or have the matrix under "loads" or "weight" (as EPLB calls it)
    and optionally "coactivation" [layers, experts, experts]. CSV: a row of numbers per layer.
    Raises BadInput naming what is wrong.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return Loads(check_loads(_csv_rows(text, name)))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not JSON: {error}", param="loads") from None
    if isinstance(value, list):
        return Loads(check_loads(value))
    matrix = value.get("loads", value.get("weight"))
    if matrix is None and isinstance(value.get("layers"), list):
        matrix = [layer.get("tokens") for layer in value["layers"] if isinstance(layer, dict)]
    if matrix is None:
        raise BadInput(f'{name} has no "loads": write a matrix of layers x experts', param="loads")
    loads = check_loads(matrix)
    pairs = value.get("coactivation")
    return Loads(loads, None if pairs is None else _check_pairs(pairs, loads))


def _csv_rows(text: str, name: str) -> list[list[float]]:
    rows = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        try:
            rows.append([float(cell) for cell in row])
        except ValueError:
            raise BadInput(
                f"{name}, line {number}: every cell must be a number, not {','.join(row)[:60]!r}",
                param="loads",
            ) from None
    return rows


def _check_pairs(value: Any, loads: Floats) -> Floats:
    layers, experts = loads.shape
    try:
        pairs = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape != (layers, experts, experts) or not np.isfinite(pairs).all() or (pairs < 0).any():
        raise BadInput(f"coactivation must be {layers} x {experts} x {experts} numbers of at least 0")
    symmetric: Floats = pairs + pairs.transpose(0, 2, 1)
    return symmetric


def place(
    measured: Loads,
    devices: Devices,
    *,
    method: str = "balance",
    current: ExpertPlacement | None = None,
    expert_bytes: float = DEEPSEEK_V3_EXPERT_BYTES,
    expert_seconds: float | None = None,
    bytes_per_second: float = 50e9,
) -> dict[str, Any]:
    """Place experts and weigh the result against `current` (none: experts in order, then again from the first).

    expert_seconds: of all experts in one step at perfect balance; with it, when the move has paid for itself.
    """
    if method not in METHODS:
        raise BadInput(f"--method {method!r} is not known: use {' or '.join(METHODS)}", param="method")
    loads, gpus = measured.loads, devices.gpus
    layers, experts = loads.shape
    devices.check(experts)
    before = current or static_placement(layers, experts, devices.replicas)
    if before.physical_to_logical.shape != (layers, devices.replicas):
        raise BadInput(f"the current placement must be {layers} layers x {devices.replicas} slots")
    improve = method == "balance"
    after = balance(loads, devices, measured.coactivation, before) if improve else eplb(loads, devices)
    moved = moved_slots(before, after, gpus)
    even_before, even_after = (balancedness(loads, placement, gpus) for placement in (before, after))
    answer = {
        "method": method,
        "hierarchical": devices.hierarchical and devices.nodes > 1,
        "physical_to_logical": after.physical_to_logical.tolist(),
        "logical_count": after.logical_count.tolist(),
        "balancedness_before": float(even_before.mean()),
        "balancedness_after": float(even_after.mean()),
        "balancedness_per_layer": even_after.tolist(),
        "moved_bytes": int(moved.sum() * expert_bytes),
        "moved_bytes_of_busiest_gpu": int(moved.sum(axis=0).max() * expert_bytes),
        "expert_bytes": int(expert_bytes),
        "redundant_bytes_per_gpu": int((devices.replicas - experts) / gpus * layers * expert_bytes),
    }
    if measured.coactivation is not None:
        answer["colocation_before"] = float(colocation(measured.coactivation, before, gpus).mean())
        answer["colocation_after"] = float(colocation(measured.coactivation, after, gpus).mean())
    if expert_seconds is not None:
        answer |= _payback(answer, expert_seconds, bytes_per_second)
    return answer


def _payback(answer: dict[str, Any], expert_seconds: float, bytes_per_second: float) -> dict[str, Any]:
    pays = replacement(
        expert_seconds,
        answer["balancedness_before"],
        answer["balancedness_after"],
        answer["moved_bytes_of_busiest_gpu"],
        bytes_per_second,
    )
    return {
        "gain_seconds_per_step": pays.gain_per_step,
        "moving_seconds": pays.moving,
        "pays_after_steps": pays.pays_after_steps,
    }
