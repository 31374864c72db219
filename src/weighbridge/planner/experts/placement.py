"""Which expert goes to which slot of which GPU: the expert-parallel load balancer of DeepSeek, and its measures.

The algorithm is EPLB's (github.com/deepseek-ai/EPLB), written anew from its description: groups of experts are
packed onto nodes, experts that carry most are given more replicas, replicas are packed onto GPUs. Loads are
tokens per expert, float [layers, experts]; slots are numbered GPU by GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.errors import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Devices:
    """`replicas` slots spread evenly over `gpus`, which are spread evenly over `nodes`.

    `groups`: experts come in that many groups that a router keeps together (group-limited routing); where they
    divide evenly over the nodes, a group stays on one node.
    """

    gpus: int
    replicas: int
    nodes: int = 1
    groups: int = 1

    @property
    def slots(self) -> int:
        """Of one GPU."""
        return self.replicas // self.gpus

    @property
    def hierarchical(self) -> bool:
        return self.groups % self.nodes == 0

    def check(self, experts: int) -> None:
        """Raises BadInput for a fleet that cannot hold `experts` experts evenly."""
        for name in ("gpus", "replicas", "nodes", "groups"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} must be at least 1, not {getattr(self, name)}", param=name)
        if self.gpus > self.replicas:
            raise BadInput(
                f"{self.gpus} GPUs cannot each hold one of {self.replicas} expert replicas: use fewer GPUs, "
                f"or --replicas {-(-experts // self.gpus) * self.gpus} or more",
                param="replicas",
            )
        if self.replicas < experts:
            raise BadInput(
                f"{self.replicas} replicas cannot hold {experts} experts: each needs at least one slot",
                param="replicas",
            )
        if self.replicas % self.gpus:
            raise BadInput(
                f"{self.replicas} replicas do not divide evenly over {self.gpus} GPUs; "
                f"the next number that does is {-(-self.replicas // self.gpus) * self.gpus}",
                param="replicas",
            )
        if self.gpus % self.nodes:
            raise BadInput(
                f"{self.gpus} GPUs do not divide evenly over {self.nodes} nodes; "
                f"with {self.nodes} nodes the next number that does is "
                f"{-(-self.gpus // self.nodes) * self.nodes}",
                param="nodes",
            )
        if experts % self.groups:
            raise BadInput(
                f"{experts} experts do not divide evenly into {self.groups} groups; give the model's n_group",
                param="groups",
            )


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """physical_to_logical [layers, replicas]: the expert in each slot. logical_count [layers, experts]."""

    physical_to_logical: Ints
    logical_count: Ints

    @classmethod
    def of(cls, physical_to_logical: Ints, experts: int) -> ExpertPlacement:
        """Raises BadInput when an expert has no slot."""
        count = np.stack([np.bincount(row, minlength=experts) for row in physical_to_logical])
        if count.shape[1] != experts or (count == 0).any():
            raise BadInput("a placement must give every expert at least one slot and name no others")
        return cls(physical_to_logical, count)


def check_loads(value: Any) -> Floats:
    """Return loads as [layers, experts]; a plain list is one layer. Raises BadInput saying which number is wrong."""
    try:
        loads = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput("loads must be numbers, one list per layer, each with one number per expert") from None
    if loads.ndim == 1:
        loads = loads[None, :]
    if loads.ndim != 2 or loads.size == 0:
        shape = " x ".join(map(str, loads.shape))
        raise BadInput(f"loads must have the shape layers x experts, not {shape or 'a single number'}")
    if loads.shape[1] < 2:
        raise BadInput(
            "loads of one expert: a layer with a single expert is dense, there is nothing to place"
        )
    for wrong, what in ((~np.isfinite(loads), "not a finite number"), (loads < 0, "negative")):
        if wrong.any():
            layer, expert = (int(index) for index in np.argwhere(wrong)[0])
            raise BadInput(f"the load of expert {expert} in layer {layer} is {loads[layer, expert]}: {what}")
    empty = np.flatnonzero(loads.sum(axis=1) == 0)
    if empty.size:
        raise BadInput(f"layer {int(empty[0])} has no load at all: nothing was measured there")
    return loads


def static_placement(layers: int, experts: int, replicas: int) -> ExpertPlacement:
    """Place experts in their order, then again from the first, as engines start before anything is measured."""
    return ExpertPlacement.of(np.tile(np.arange(replicas) % experts, (layers, 1)), experts)


def eplb(loads: Floats, devices: Devices) -> ExpertPlacement:
    """Return EPLB's placement: hierarchical where the groups divide over the nodes, else global."""
    layers, experts = loads.shape
    devices.check(experts)
    groups, nodes = (devices.groups, devices.nodes) if devices.hierarchical else (1, 1)
    group_loads = loads.reshape(layers, groups, -1).sum(axis=2)
    by_node = _slot_contents(pack_evenly(group_loads, nodes))
    members = by_node[:, :, None] * (experts // groups) + np.arange(experts // groups)
    members = members.reshape(layers * nodes, experts // nodes)  # the experts of each node
    node_loads = np.take_along_axis(np.repeat(loads, nodes, axis=0), members, axis=1)
    replicas, counts = replicate(node_loads, devices.replicas // nodes)
    shares = np.take_along_axis(node_loads / counts, replicas, axis=1)
    in_slots = np.take_along_axis(
        replicas, _slot_contents(pack_evenly(shares, devices.gpus // nodes)), axis=1
    )
    physical = np.take_along_axis(members, in_slots, axis=1).reshape(layers, devices.replicas)
    return ExpertPlacement.of(physical, experts)


def pack_evenly(weights: Floats, packs: int) -> Ints:
    """Return the slot of each item, in `packs` equal packs: heaviest first, each to the lightest pack with room.

    weights [rows, items]; returns [rows, items] with slot = pack * (items / packs) + place in the pack.
    """
    rows, items = weights.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1))
    slot = np.empty((rows, items), np.int64)
    filled = np.zeros((rows, packs), np.int64)
    carried = np.zeros((rows, packs))
    every = np.arange(rows)
    for item in np.argsort(-weights, axis=1, kind="stable").T:
        pack = np.where(filled < room, carried, np.inf).argmin(axis=1)
        slot[every, item] = pack * room + filled[every, pack]
        carried[every, pack] += weights[every, item]
        filled[every, pack] += 1
    return slot


def replicate(weights: Floats, slots: int) -> tuple[Ints, Ints]:
    """Fill `slots` with items [rows, items]: each once, then again whichever carries most per replica.

    That minimises the largest load of a replica. Returns the item in each slot and the replicas of each item.
    """
    rows, items = weights.shape
    contents = np.empty((rows, slots), np.int64)
    contents[:, :items] = np.arange(items)
    counts = np.ones((rows, items), np.int64)
    every = np.arange(rows)
    for slot in range(items, slots):
        heaviest = (weights / counts).argmax(axis=1)
        contents[:, slot] = heaviest
        counts[every, heaviest] += 1
    return contents, counts


def _slot_contents(slot: Ints) -> Ints:
    """Return the item in each slot, from the slot of each item."""
    return np.argsort(slot, axis=1)


def gpu_loads(loads: Floats, placement: ExpertPlacement, gpus: int) -> Floats:
    """Return the tokens of each GPU [layers, gpus] when the replicas of an expert share its load evenly."""
    shares = np.take_along_axis(loads / placement.logical_count, placement.physical_to_logical, axis=1)
    total: Floats = shares.reshape(len(loads), gpus, -1).sum(axis=2)
    return total


def balancedness(loads: Floats, placement: ExpertPlacement, gpus: int) -> Floats:
    """Return the mean over the maximum of the GPUs' loads, per layer: 1 is even, else a step takes 1 / that as long."""
    per_gpu = gpu_loads(loads, placement, gpus)
    ratio: Floats = per_gpu.mean(axis=1) / per_gpu.max(axis=1)
    return ratio


def moved_slots(before: ExpertPlacement, after: ExpertPlacement, gpus: int) -> Ints:
    """Return how many experts each GPU must fetch [layers, gpus]: those it holds after and did not before."""
    experts = before.logical_count.shape[1]
    held = [_held(placement, gpus, experts) for placement in (before, after)]
    moved: Ints = (held[1] & ~held[0]).sum(axis=2)
    return moved


def _held(placement: ExpertPlacement, gpus: int, experts: int) -> npt.NDArray[np.bool_]:
    """[layers, gpus, experts]: whether the GPU holds the expert; a second copy on it costs no transfer."""
    rows = placement.physical_to_logical.reshape(len(placement.physical_to_logical), gpus, -1)
    held = np.zeros((len(rows), gpus, experts), np.bool_)
    np.put_along_axis(held, rows, True, axis=2)
    return held
