"""A placement that starts from EPLB's: no expert twice on a GPU, then local search on load, co-activation and moves.

EPLB packs greedily and looks back at nothing; it may give a GPU two replicas of one expert, which take a slot and
share no load. Those are dealt out anew. Then the GPU that carries most swaps replicas with another, or a replica
elsewhere is given to the expert that weighs it down, for as long as that helps. Then, without touching the balance
that was reached, experts that are used together come together (fewer GPUs a token), and GPUs trade names so that as
few experts as possible move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from weighbridge.planner.experts.placement import Devices, ExpertPlacement, Floats, Ints, eplb, moved_slots

#: Rounding of sums: an improvement smaller than this share of the mean load is none.
TOLERANCE = 1e-9

#: Swaps for the sake of co-activation, per layer: each looks at all pairs of slots.
COACTIVATION_SWAPS = 64

#: Bounds on an expert's replicas that are tried where EPLB doubles one on a GPU: all GPUs, half of them, and so on.
BOUNDS_TRIED = 4


@dataclass(slots=True)
class _Layer:
    """One layer while it is being improved."""

    loads: Floats  # [experts]
    contents: Ints  # [replicas]
    counts: Ints  # [experts]
    gpu_of: Ints  # [replicas]
    node_of: Ints  # [gpus]; experts stay within a node

    def shares(self) -> Floats:
        per_replica: Floats = (self.loads / self.counts)[self.contents]
        return per_replica

    def per_gpu(self) -> Floats:
        return np.bincount(self.gpu_of, weights=self.shares(), minlength=len(self.node_of)).astype(np.float64)

    def heaviest(self) -> float:
        return float(self.per_gpu().max())

    def presence(self) -> Ints:
        """Replicas of each expert on each GPU [experts, gpus]."""
        shape = len(self.loads), len(self.node_of)
        places = np.ravel_multi_index((self.contents, self.gpu_of), shape)
        return np.bincount(places, minlength=math.prod(shape)).reshape(shape)

    def doubled(self) -> bool:
        """Whether a GPU holds an expert twice while another of its node's is lacking there."""
        held = self.presence()
        for node in np.unique(self.node_of):
            here = held[:, self.node_of == node]
            here = here[here.any(axis=1)]
            if ((here > 1).any(axis=0) & (here == 0).any(axis=0)).any():
                return True
        return False

    def swap(self, a: int, b: int) -> None:
        self.contents[a], self.contents[b] = self.contents[b], self.contents[a]


def balance(
    loads: Floats,
    devices: Devices,
    coactivation: Floats | None = None,
    current: ExpertPlacement | None = None,
) -> ExpertPlacement:
    """Return an improved placement. No GPU holds an expert twice while another of its node is lacking there.

    Its balancedness is at least EPLB's in every layer where EPLB keeps to that too. Elsewhere it is nearly always: two
    replicas on one GPU can only help by drawing two thirds of an expert's load there.

    coactivation: how often tokens use two experts together, symmetric [layers, experts, experts].
    current: what the GPUs hold now; GPUs are numbered so that little of it has to move.
    """
    start = eplb(loads, devices)
    experts = loads.shape[1]
    gpus = np.arange(devices.gpus)
    nodes = devices.nodes if devices.hierarchical and devices.groups > 1 else 1
    node_of = gpus * nodes // devices.gpus
    gpu_of = np.repeat(gpus, devices.slots)
    rows = []
    for index, contents in enumerate(start.physical_to_logical):
        layer = _Layer(loads[index], contents.copy(), start.logical_count[index].copy(), gpu_of, node_of)
        if layer.doubled():
            layer = _undoubled(layer, nodes)
        elif devices.slots > 1:
            _even_out(layer)
        if coactivation is not None and devices.slots > 1:
            _bring_together(layer, coactivation[index])
        rows.append(layer.contents)
    improved = ExpertPlacement.of(np.stack(rows), experts)
    return improved if current is None else keep_in_place(improved, current, devices.gpus, node_of)


def _undoubled(layer: _Layer, nodes: int) -> _Layer:
    """The evenest of several layers without doubles.

    An expert on most GPUs weighs on none of them, but takes slots that others may need more, so a few bounds on its
    replicas are tried, and the two best are improved.
    """
    gpus, tried = len(layer.node_of) // nodes, []
    for most in sorted({max(gpus >> halved, 1) for halved in range(BOUNDS_TRIED)}):
        one = replace(layer, contents=layer.contents.copy(), counts=layer.counts.copy())
        _deal_out(one, nodes, most)
        tried.append(one)
    best = sorted(tried, key=_Layer.heaviest)[:2]
    for one in best:
        _even_out(one)
    return min(best, key=_Layer.heaviest)


def _deal_out(layer: _Layer, nodes: int, most: int) -> None:
    """Choose replicas anew, `most` of an expert where that fills the slots, and give them to GPUs that lack it."""
    gpus, slots = len(layer.node_of) // nodes, len(layer.contents) // len(layer.node_of)
    for node in range(nodes):
        mine = np.flatnonzero(layer.node_of[layer.gpu_of] == node)
        members = np.unique(layer.contents[mine])
        loads = layer.loads[members]
        if slots >= len(members):  # all of them everywhere, and what is left over alike on all GPUs
            rows = np.tile(np.arange(slots) % len(members), (gpus, 1))
        else:
            bound = max(most, -(-gpus * slots // len(members)))
            rows = _dealt(loads, replicas_within(loads, gpus * slots, bound), gpus, slots)
        layer.contents[mine] = members[rows].reshape(-1)
    layer.counts[:] = np.bincount(layer.contents, minlength=len(layer.counts))


def replicas_within(loads: Floats, slots: int, most: int) -> Ints:
    """Fill `slots` with items: each once, then again whichever carries most per replica, at most `most` times."""
    counts = np.ones(len(loads), np.int64)
    for _ in range(slots - len(loads)):
        per_replica = np.where(counts < most, loads / counts, -1.0)
        counts[int(per_replica.argmax())] += 1
    return counts


def _dealt(loads: Floats, counts: Ints, gpus: int, slots: int) -> Ints:
    """Return the items of each GPU [gpus, slots], all different.

    The heaviest replica comes first, each to the lightest GPU with room that lacks it; or another makes room.
    """
    held, room = np.zeros((gpus, len(loads)), np.bool_), np.full(gpus, slots)
    carried = np.zeros(gpus)
    shares = loads / counts
    for item in np.repeat(np.arange(len(loads)), counts)[
        np.argsort(-np.repeat(shares, counts), kind="stable")
    ].tolist():
        fits = (room > 0) & ~held[:, item]
        if fits.any():
            gpu = int(np.where(fits, carried, np.inf).argmin())
        else:  # whoever has room has it already: a full one that lacks it gives something that is lacking there
            gpu = int(np.where(~held[:, item], carried, np.inf).argmin())
            taker = int(np.flatnonzero(room)[0])
            given = int(np.flatnonzero(held[gpu] & ~held[taker])[0])
            held[gpu, given], held[taker, given] = False, True
            carried[gpu] -= shares[given]
            carried[taker] += shares[given]
            room[gpu], room[taker] = 1, room[taker] - 1
        held[gpu, item] = True
        room[gpu] -= 1
        carried[gpu] += shares[item]
    return np.nonzero(held)[1].reshape(gpus, slots)


def _even_out(layer: _Layer) -> None:
    """Swap and re-replicate experts of the heaviest GPU until neither lowers the load of any such GPU."""
    target = layer.loads.sum() / len(layer.node_of)
    slack = target * TOLERANCE
    for _ in range(4 * len(layer.contents)):
        per_gpu = layer.per_gpu()
        heaviest = int(per_gpu.argmax())
        if per_gpu[heaviest] <= target + slack:
            return
        if not _swap_from(layer, heaviest, per_gpu, slack) and not _replicate_from(layer, heaviest, slack):
            return


def _swap_from(layer: _Layer, heaviest: int, per_gpu: Floats, slack: float) -> bool:
    """Make the swap that leaves the heavier of the two GPUs lightest; return False when none lowers `heaviest`."""
    shares = layer.shares()
    mine = np.flatnonzero(layer.gpu_of == heaviest)
    given = shares[mine][:, None] - shares[None, :]  # load that leaves with the swap [mine, replicas]
    after = np.maximum(per_gpu[heaviest] - given, (per_gpu[layer.gpu_of])[None, :] + given)
    same_node = layer.node_of[layer.gpu_of] == layer.node_of[heaviest]
    after[:, (layer.gpu_of == heaviest) | ~same_node] = np.inf
    after[_doubles(layer, mine)] = np.inf
    best = int(after.argmin())
    if after.flat[best] >= per_gpu[heaviest] - slack:
        return False
    row, slot = divmod(best, len(shares))
    layer.swap(int(mine[row]), slot)
    return True


def _doubles(layer: _Layer, slots: Ints) -> npt.NDArray[np.bool_]:
    """Whether swapping each of `slots` with any slot brings a GPU an expert that it holds already [slots, replicas]."""
    held, contents = layer.presence() > 0, layer.contents
    there = held[contents[slots][:, None], layer.gpu_of[None, :]]  # mine is where the other is
    here = held[contents[None, :], layer.gpu_of[slots][:, None]]
    doubles: npt.NDArray[np.bool_] = there | here
    return doubles


def _replicate_from(layer: _Layer, heaviest: int, slack: float) -> bool:
    """Give a slot of some well replicated expert to one of `heaviest`; return False when that lowers no maximum.

    All GPUs are weighed anew for every pair of (expert that gains, slot that changes).
    """
    held, counts, loads = layer.presence(), layer.counts, layer.loads
    per_gpu = layer.per_gpu()
    slots = np.flatnonzero(counts[layer.contents] > 1)
    slots = slots[layer.node_of[layer.gpu_of[slots]] == layer.node_of[heaviest]]
    best, choice = per_gpu.max() - slack, None
    if not slots.size:
        return False
    losers, gpus = layer.contents[slots], layer.gpu_of[slots]
    lighter = loads / np.maximum(counts - 1, 1)  # a replica's load with one replica fewer
    every = np.arange(len(slots))
    base = per_gpu[None, :] + held[losers] * (lighter - loads / counts)[losers][:, None]
    base[every, gpus] -= lighter[losers]
    for winner in np.unique(layer.contents[layer.gpu_of == heaviest]).tolist():
        share = loads[winner] / (counts[winner] + 1)
        after = base + held[winner] * (share - loads[winner] / counts[winner])
        after[every, gpus] += share
        after[held[winner, gpus] > 0] = np.inf  # it would be there twice
        maximum = after.max(axis=1)
        if maximum.min() < best:
            best, choice = maximum.min(), (winner, int(slots[maximum.argmin()]))
    if choice is None:
        return False
    winner, slot = choice
    counts[layer.contents[slot]] -= 1
    counts[winner] += 1
    layer.contents[slot] = winner
    return True


def _bring_together(layer: _Layer, coactivation: Floats) -> None:
    """Swap replicas so that co-activated experts share a GPU, as long as no GPU carries more than the maximum."""
    together = coactivation / np.outer(layer.counts, layer.counts)
    np.fill_diagonal(together, 0.0)
    gpu_of = layer.gpu_of
    node = layer.node_of[gpu_of]
    allowed = (node[:, None] == node[None, :]) & (gpu_of[:, None] != gpu_of[None, :])
    for _ in range(COACTIVATION_SWAPS):
        per_gpu, shares = layer.per_gpu(), layer.shares()
        own = together[layer.contents]
        affinity = own @ layer.presence()  # of each slot's expert to what each GPU holds [replicas, gpus]
        at_home = affinity[np.arange(len(gpu_of)), gpu_of]
        there = affinity[:, gpu_of]
        gain = there + there.T - at_home[:, None] - at_home[None, :] - 2 * own[:, layer.contents]
        brought = per_gpu[gpu_of][:, None] - shares[:, None] + shares[None, :]
        light = brought <= per_gpu.max()
        fits = allowed & light & light.T & ~_doubles(layer, np.arange(len(gpu_of)))
        gain[~fits] = 0.0
        best = int(gain.argmax())
        if gain.flat[best] <= TOLERANCE * max(float(together.sum()), 1e-300):
            return
        layer.swap(*divmod(best, len(gpu_of)))


def keep_in_place(
    placement: ExpertPlacement, current: ExpertPlacement, gpus: int, node_of: Ints
) -> ExpertPlacement:
    """Return the same placement with GPUs renamed, inside nodes, so that they keep most of what they hold now."""
    experts = placement.logical_count.shape[1]
    rows = []
    for new, old in zip(placement.physical_to_logical, current.physical_to_logical, strict=True):
        held = np.zeros((2, gpus, experts), np.float32)  # floats: their product is the fast one
        for side, row in enumerate((new, old)):
            np.put_along_axis(held[side], row.reshape(gpus, -1), 1.0, axis=1)
        match = _match(held[0] @ held[1].T, node_of)
        rows.append(new.reshape(gpus, -1)[match].reshape(-1))
    renamed = ExpertPlacement.of(np.stack(rows), experts)
    stays = moved_slots(current, placement, gpus).sum() <= moved_slots(current, renamed, gpus).sum()
    return placement if stays else renamed


def _match(overlap: npt.NDArray[np.float32], node_of: Ints) -> Ints:
    """Assign greedily: for each old GPU the new one put in its place, largest overlaps first."""
    overlap = np.where(node_of[:, None] == node_of[None, :], overlap, 0)
    shared = np.argwhere(overlap > 0)
    order = np.argsort(-overlap[shared[:, 0], shared[:, 1]], kind="stable")
    chosen = np.full(len(node_of), -1)
    used = np.zeros(len(node_of), np.bool_)
    for new, old in shared[order].tolist():
        if not used[new] and chosen[old] < 0:
            chosen[old], used[new] = new, True
    for node in np.unique(node_of):  # GPUs that share nothing take what is left, in order
        chosen[(chosen < 0) & (node_of == node)] = np.flatnonzero(~used & (node_of == node))
    return chosen


def colocation(coactivation: Floats, placement: ExpertPlacement, gpus: int) -> Floats:
    """Return the share of co-activated pairs that find each other on one GPU, per layer, replicas chosen at random."""
    shares = []
    for row, counts, pairs in zip(
        placement.physical_to_logical, placement.logical_count, coactivation, strict=True
    ):
        held = np.zeros((gpus, len(counts)))
        for gpu, experts in enumerate(row.reshape(gpus, -1)):
            np.add.at(held[gpu], experts, 1.0)
        share = held / counts
        off_diagonal = pairs - np.diag(np.diag(pairs))
        total = off_diagonal.sum()
        met = (share.T @ share * off_diagonal).sum()
        shares.append(met / total if total else 0.0)
    return np.array(shares)
