"""What the expert cache keeps, against a plain LRU: never fewer hits, whatever the load; clearly more on most."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.models.experts.policy import HeatAware
from weighbridge.models.experts.ways import PlainLru

LAYERS, EXPERTS, TOP_K = 12, 8, 2
Routing = list[list[list[int]]]  # step, layer, experts used
KINDS = ["uniform", "mild", "skewed", "drifting", "topics", "sticky", "cycle", "phases"]


def routing(kind: str, steps: int, batch: int, seed: int = 0) -> Routing:
    """Synthetic loads: even or skewed tokens, drifting popularity, texts that stick to their experts, a cyclic
    scan, and phases of all of these in turn."""
    if kind == "phases":
        parts = (routing(KINDS[seed + i], steps // 5, batch, seed) for i in (2, 0, 6, 5, 2))
        return [step for part in parts for step in part]
    rng = np.random.default_rng(seed)
    skew = {"uniform": 0.0, "mild": 0.4, "skewed": 1.0, "drifting": 1.0}.get(kind, 0.8)
    ranks = np.arange(1.0, EXPERTS + 1)

    def popularity() -> np.ndarray:
        return np.stack([rng.permutation(-skew * np.log(ranks)) for _ in range(LAYERS)])

    logits, previous = popularity(), np.zeros((LAYERS, EXPERTS))
    recorded: Routing = []
    for step in range(steps):
        if kind == "cycle":
            recorded.append([[(step + i) % EXPERTS for i in range(TOP_K)]] * LAYERS)
            continue
        if kind == "drifting" and step % 100 == 99:
            logits = popularity()
        if kind == "topics" and step % 40 == 39:
            logits = rng.gumbel(size=(LAYERS, EXPERTS)) * 2.0
        noise = rng.gumbel(size=(batch, LAYERS, EXPERTS)) + logits + 2.0 * (kind == "sticky") * previous
        top = np.argpartition(-noise, TOP_K - 1, axis=2)[:, :, :TOP_K]
        used = [sorted(set(top[:, layer].ravel().tolist())) for layer in range(LAYERS)]
        previous = np.zeros((LAYERS, EXPERTS))
        for layer, experts in enumerate(used):
            previous[layer, experts] = 1.0
        recorded.append(used)
    return recorded


def visits(recorded: Routing) -> Iterator[tuple[int, list[int]]]:
    return ((layer, experts) for step in recorded for layer, experts in enumerate(step))


class Witness:
    """A policy beside a plain LRU of our own, and what must hold after every visit."""

    def __init__(self, layers: int, experts: int, capacity: int, least: int) -> None:
        self.policy = HeatAware(layers, experts, capacity, least)
        self.lru = PlainLru(capacity, sorted(self.policy.resident))
        self.resident = set(self.policy.resident)
        self.capacity = capacity
        self.hits = self.lru_hits = self.uses = 0

    def visit(self, layer: int, experts: list[int]) -> None:
        self.uses += len(experts)
        self.hits += sum((layer, expert) in self.resident for expert in experts)
        self.lru_hits += self.lru.visit(layer, experts)[0]
        came, gone = self.policy.visit(layer, experts)
        assert {number for _, number in came} <= set(experts)
        self.resident = (self.resident | set(came)) - set(gone)
        assert self.resident == self.policy.resident
        assert len(self.resident) <= self.capacity
        assert (self.hits, self.lru_hits) == (self.policy.hits, self.policy.lru_hits)
        assert self.hits >= self.lru_hits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_heat_aware_hits_at_least_what_an_lru_does(kind: str, batch: int, share: float) -> None:
    seen = Witness(LAYERS, EXPERTS, int(share * LAYERS * EXPERTS), TOP_K)
    for layer, experts in visits(routing(kind, 300, batch)):
        seen.visit(layer, experts)
    if kind == "skewed":
        assert seen.hits > seen.lru_hits + 0.025 * seen.uses
        if batch > 1:
            assert seen.hits > seen.lru_hits + 0.1 * seen.uses


@settings(max_examples=150, deadline=None)
@given(data=st.data(), layers=st.integers(1, 5), experts=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_no_load_makes_an_lru_better(data: st.DataObject, layers: int, experts: int, seed: int) -> None:
    """Loads of every kind, mixed, the last layer left out now and then, and an adversary who asks for what we lack."""
    least = data.draw(st.integers(1, experts))
    capacity = data.draw(st.integers(layers, layers * experts))
    habits = data.draw(st.lists(st.sampled_from(["any", "few", "scan", "spite"]), min_size=1, max_size=4))
    rng = np.random.default_rng(seed)
    seen = Witness(layers, experts, capacity, least)
    favourites = rng.permuted(np.tile(np.arange(experts), (layers, 1)), axis=1)
    for step in range(60):
        habit = habits[step * len(habits) // 60]
        for layer in range(layers - (layers > 1 and rng.random() < 0.1)):
            order = rng.permutation(experts).tolist()
            count = int(rng.integers(least, experts + 1)) if habit == "any" else least
            if habit == "few" and rng.random() < 0.8:
                order = favourites[layer].tolist()
            elif habit == "scan":
                order = [(step * least + index) % experts for index in range(experts)]
            elif habit == "spite":  # what the LRU would have hit and we miss, else what it threw out last
                order.sort(key=lambda one: ((layer, one) in seen.resident, not seen.lru.holds((layer, one))))
            seen.visit(layer, order[:count])


def test_departures_at_stake_are_those_the_lru_could_still_hit() -> None:
    """The ledger against sets written out: what the LRU holds and we lack, of layers it may yet hit in."""
    seen = Witness(LAYERS, EXPERTS, 40, TOP_K)
    for layer, experts in visits(routing("skewed", 60, 2)):
        seen.visit(layer, experts)
        stakes = seen.policy._stakes
        lacking = set(seen.lru.held) - seen.resident
        assert stakes.total == sum(stakes.risks(expert) for expert in lacking)
        assert stakes.total <= seen.hits - seen.lru_hits


def test_nothing_breaks_when_iterations_fail_half_way() -> None:
    """Layers out of turn are outside the promise, yet the books stay right and the LRU is not far."""
    rng = np.random.default_rng(0)
    policy = HeatAware(LAYERS, EXPERTS, 50, TOP_K)
    for step in routing("mild", 200, 1):
        for layer, experts in enumerate(step[: rng.integers(1, LAYERS + 1)]):
            policy.visit(layer, experts)
            assert len(policy.resident) <= 50
    assert policy.hits > policy.lru_hits * 0.98
