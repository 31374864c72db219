"""Which experts stay in memory when not all fit. Plain Python, so that it can be replayed on recorded routing.

Layers are visited in turn, so the expert that was used longest ago is always one that is needed next: a plain LRU
throws out the wrong one, and hits nothing at all once a step touches more experts than there is room for. What is
worth keeping depends on the load: the last experts while a text sticks to them, the most used ones where tokens
differ. `HeatAware` plays three ways on paper, the plain LRU among them, and follows the one that would have hit
more often of late; so it is never long behind a plain LRU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

Expert = tuple[int, int]  # layer, expert

#: Half-lives, in steps: of an expert's heat, and of how often each way of keeping would have hit.
HEAT_HALF_LIFE = 50.0
SCORE_HALF_LIFE = 25.0

#: Hits by which another way must lead before it is followed: a share of those of the present one, and a number.
LEAD_SHARE, LEAD_HITS = 0.02, 4.0

#: By which another way must lead the plain LRU while less was hit in all than by it.
CAUTION = 0.2


class Way(Protocol):
    """One way of choosing what to keep."""

    @property
    def held(self) -> Iterable[Expert]: ...

    def holds(self, expert: Expert) -> bool: ...

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[int, list[Expert]]:
        """`experts` of `layer` are used: how many of them were held, and what leaves for the others."""
        ...


class PlainLru:
    """One queue over all layers, the expert used longest ago leaves."""

    def __init__(self, capacity: int, held: Iterable[Expert] = ()) -> None:
        self._capacity = capacity
        self.held: OrderedDict[Expert, None] = OrderedDict.fromkeys(held)

    def holds(self, expert: Expert) -> bool:
        return expert in self.held

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[int, list[Expert]]:
        hits, gone = 0, []
        for number in experts:
            hits += (layer, number) in self.held
            self.held[layer, number] = None
            self.held.move_to_end((layer, number))
            if len(self.held) > self._capacity:
                gone.append(self.held.popitem(last=False)[0])
        return hits, gone


class LayeredLru:
    """The last experts used, each layer with a room of its own."""

    def __init__(self, rooms: Sequence[int], held: Iterable[Expert]) -> None:
        self._layers = [PlainLru(room) for room in rooms]
        for expert in held:
            self._layers[expert[0]].held[expert] = None

    @property
    def held(self) -> list[Expert]:
        return [expert for layer in self._layers for expert in layer.held]

    def holds(self, expert: Expert) -> bool:
        return expert in self._layers[expert[0]].held

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[int, list[Expert]]:
        return self._layers[layer].visit(layer, experts)


class Hottest:
    """The experts used most of late, each layer with a room of its own."""

    def __init__(self, rooms: Sequence[int], experts: int, held: Iterable[Expert]) -> None:
        self._rooms = rooms
        self._cooling = 0.5 ** (1.0 / HEAT_HALF_LIFE)
        self.heat = [[0.0] * experts for _ in rooms]
        self._numbers: list[set[int]] = [set() for _ in rooms]
        for layer, number in held:
            self._numbers[layer].add(number)

    @property
    def held(self) -> list[Expert]:
        return [(layer, number) for layer, numbers in enumerate(self._numbers) for number in numbers]

    def holds(self, expert: Expert) -> bool:
        return expert[1] in self._numbers[expert[0]]

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[int, list[Expert]]:
        heat, held, cooling = self.heat[layer], self._numbers[layer], self._cooling
        for number, value in enumerate(heat):
            heat[number] = value * cooling
        for number in experts:
            heat[number] += 1.0
        missing = [number for number in experts if number not in held]
        gone = []
        for number in missing:
            held.add(number)
            if len(held) > self._rooms[layer]:
                coldest = min(held, key=heat.__getitem__)
                held.remove(coldest)
                gone.append((layer, coldest))
        return len(experts) - len(missing), gone


class HeatAware:
    """What is really resident: it follows whichever way has been the best choice lately.

    `capacity` experts of `layers` layers; it begins with the first ones of each layer.
    """

    def __init__(self, layers: int, experts: int, capacity: int) -> None:
        rooms = [
            min(experts, capacity * (layer + 1) // layers - capacity * layer // layers)
            for layer in range(layers)
        ]
        held = [(layer, number) for layer, room in enumerate(rooms) for number in range(room)]
        self._capacity = capacity
        self._ways: dict[str, Way] = {
            "lru": PlainLru(capacity, held),
            "layered": LayeredLru(rooms, held),
            "hottest": Hottest(rooms, experts, held),
        }
        self._scores = dict.fromkeys(self._ways, 0.0)
        self._fading = 0.5 ** (1.0 / SCORE_HALF_LIFE)
        self.follows = "lru"
        self.resident: set[Expert] = set(held)
        self._doomed: OrderedDict[Expert, None] = (
            OrderedDict()
        )  # resident, but not wanted by the way followed
        self.hits = 0
        self.lru_hits = 0  # of a plain LRU of the same capacity, for comparison

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[list[Expert], list[Expert]]:
        """`experts` of `layer` are used. Returns (those to take in, those that leave for them)."""
        if layer == 0:
            self._choose()
        self.hits += sum((layer, number) in self.resident for number in experts)
        for name, way in self._ways.items():
            hits, gone = way.visit(layer, experts)
            self._scores[name] += hits
            if name == "lru":
                self.lru_hits += hits
            if name == self.follows:
                self._doomed |= dict.fromkeys(expert for expert in gone if expert in self.resident)
        return self._follow(layer, experts)

    def _choose(self) -> None:
        best = max(self._scores, key=self._scores.__getitem__)
        leads = self._scores[best] > self._scores[self.follows] * (1.0 + LEAD_SHARE) + LEAD_HITS
        if self.hits < self.lru_hits and self._scores[best] <= self._scores["lru"] * (1.0 + CAUTION):
            best, leads = "lru", self.follows != "lru"  # what departing from it had won is lost again
        if leads:
            self.follows = best
            way = self._ways[best]
            self._doomed = OrderedDict.fromkeys(one for one in self.resident if not way.holds(one))
        for name in self._scores:
            self._scores[name] *= self._fading

    def _follow(self, layer: int, experts: Sequence[int]) -> tuple[list[Expert], list[Expert]]:
        way, came, gone = self._ways[self.follows], [], []
        for number in experts:
            expert = (layer, number)
            if not way.holds(expert):
                continue
            self._doomed.pop(expert, None)
            if expert in self.resident:
                continue
            self.resident.add(expert)
            came.append(expert)
            if len(self.resident) > self._capacity:  # then something resident is not among what the way holds
                oldest = self._doomed.popitem(last=False)[0]
                self.resident.remove(oldest)
                gone.append(oldest)
        return came, gone
