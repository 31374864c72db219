"""Several models on one box: which device holds which, and the share of its memory that each gets.

Bin packing. A model that one device holds may share it; a larger one takes whole devices (tensor parallel).
What a model needs at least: weights, overheads, and cache for its requests. Placements are searched largest model
first, depth first, once from the fullest device and once from the emptiest; of those found, the one whose worst-off
model holds most full requests is taken. What is left of a device is divided by the cache that one full request of
each model takes, so that all hold about equally many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from weighbridge.cost.hardware import Device
from weighbridge.errors import BadInput
from weighbridge.planner.memory.memory import GIB, MemoryPlan, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment

_MAX_UTILIZATION = 0.95
_MAX_MODELS = 12
#: Placements looked at from either end; boxes are small, so this is mostly all of them.
_MAX_PLACEMENTS = 2000


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on `devices` (indices), with the share of each that its engine is told to take."""

    plan: MemoryPlan
    devices: tuple[int, ...]
    share: float


@dataclass(frozen=True, slots=True)
class _Need:
    model: PlannedModel
    deployment: Deployment
    gib: float  # of each of its devices
    request_gib: float

    @property
    def width(self) -> int:
        return self.deployment.tp


def pack(models: Sequence[PlannedModel], base: Deployment, device: Device, count: int) -> list[Placed]:
    """Place all `models` on `count` devices; the result keeps their order.

    Raises BadInput saying which model does not fit, or by how much all of them together do not.
    """
    if len(models) > _MAX_MODELS:
        raise BadInput(f"packing is for up to {_MAX_MODELS} models on one box")
    needs = [_need(model, base, device, count) for model in models]
    order = sorted(range(len(needs)), key=lambda i: -needs[i].gib * needs[i].width)
    capacity = device.memory_gib * _MAX_UTILIZATION
    free = [capacity] * count
    placed = _best(order, needs, free)
    if placed is None:
        wanted = sum(need.gib * need.width for need in needs)
        raise BadInput(
            f"{len(models)} models need {wanted:.1f} GiB in pieces that do not fit on {count} x {device.name} "
            f"({capacity:.1f} GiB usable each); use smaller --weights, a shorter --max-model-len or more devices"
        )
    return [_share(i, placed, needs, device) for i in range(len(needs))]


def _need(model: PlannedModel, base: Deployment, device: Device, count: int) -> _Need:
    """Return the narrowest tensor parallelism with which the model fits alone, and what it then needs."""
    problem = ""
    for tp in (1, 2, 4, 8):
        if tp > count:
            break
        deployment = replace(base, tp=tp, gpu_memory_utilization=_MAX_UTILIZATION)
        try:
            plan = plan_memory(model, deployment, device)
        except BadInput as error:
            problem = str(error)
            continue
        if plan.fits and plan.available is not None and plan.budget is not None and plan.kv is not None:
            request = plan.kv.request_bytes / GIB
            taken = plan.budget.value - plan.available.value
            return _Need(model, deployment, taken + request * (base.concurrency or 1) * 1.01, request)
        problem = plan.problem
    raise BadInput(f"{model.name} does not fit on {count} x {device.name} even alone: {problem}")


def _best(order: list[int], needs: Sequence[_Need], free: list[float]) -> dict[int, tuple[int, ...]] | None:
    """Return the placement, of those tried, that leaves the worst-off model most; None when nothing fits."""
    capacity = free[0]
    found = [
        placed
        for fullest in (True, False)
        for placed in islice(_placements(order, needs, list(free), fullest), _MAX_PLACEMENTS)
    ]
    return max(found, key=lambda placed: min(_spare(placed, needs, capacity)), default=None)


def _spare(placed: dict[int, tuple[int, ...]], needs: Sequence[_Need], capacity: float) -> list[float]:
    """Return, for each device in use, how many more full requests each model on it can hold."""
    found = []
    for device in {index for chosen in placed.values() for index in chosen}:
        held = [needs[index] for index, chosen in placed.items() if device in chosen]
        left = capacity - sum(need.gib for need in held)
        found.append(left / max(sum(need.request_gib for need in held), 1e-9))
    return found


def _placements(
    order: list[int], needs: Sequence[_Need], free: list[float], fullest: bool
) -> Iterator[dict[int, tuple[int, ...]]]:
    """Devices for each model, by depth-first search over devices that differ, fullest or emptiest first."""
    if not order:
        yield {}
        return
    index, rest = order[0], order[1:]
    need = needs[index]
    able = [i for i in range(len(free)) if free[i] >= need.gib]
    able.sort(key=lambda i: free[i] if fullest else -free[i])
    tried: set[tuple[float, ...]] = set()
    for start in range(len(able) - need.width + 1):
        chosen = tuple(able[start : start + need.width])
        alike = tuple(free[i] for i in chosen)
        if alike in tried:
            continue
        tried.add(alike)
        before = list(free)
        for i in chosen:
            free[i] -= need.gib
        for deeper in _placements(rest, needs, free, fullest):
            yield {index: chosen, **deeper}
        free[:] = before


def _share(index: int, placed: dict[int, tuple[int, ...]], needs: Sequence[_Need], device: Device) -> Placed:
    """Give a model what it needs, and its part of what its fullest device has left."""
    need, chosen = needs[index], placed[index]
    extra = []
    for i in chosen:
        neighbours = [needs[j] for j, at in placed.items() if i in at]
        left = device.memory_gib * _MAX_UTILIZATION - sum(n.gib for n in neighbours)
        wanted = sum(n.request_gib for n in neighbours)
        extra.append(left * need.request_gib / wanted if wanted else 0.0)
    share = int((need.gib + min(extra)) / device.memory_gib * 1000) / 1000
    deployment = replace(need.deployment, gpu_memory_utilization=share)
    return Placed(plan_memory(need.model, deployment, device), chosen, share)
