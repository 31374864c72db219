"""Ways of keeping some of the experts: on paper, so that the expert cache can follow the one that pays.

Layers are visited in turn, so the expert that was used longest ago is always one that is needed next: a plain LRU
throws out the wrong one, and hits nothing at all once a step touches more experts than there is room for. What is
worth keeping depends on the load: the last experts while a text sticks to them, the most used ones where tokens
differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

Expert = tuple[int, int]  # layer, expert

#: Half-life of an expert's heat, in visits of its layer.
HEAT_HALF_LIFE = 50.0


class Way(Protocol):
    """One way of choosing what to keep."""

    @property
    def held(self) -> Iterable[Expert]: ...

    def holds(self, expert: Expert) -> bool: ...

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[int, list[Expert]]:
        """Note that `layer` uses `experts`; returns how many of them were held, and what leaves for the others."""
        ...


class PlainLru:
    """One queue over all layers; the expert used longest ago leaves."""

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
    """The experts used most often of late, each layer with a room of its own."""

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
