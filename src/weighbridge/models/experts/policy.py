"""Which experts stay in memory when not all fit: never fewer hits than a plain LRU, and more where there are any.

Plain Python, so that it can be replayed on recorded routing. Three ways of keeping experts are played on paper
(`expert_ways`), a plain LRU of the same capacity among them, and what is really resident follows the one that would
have hit most of late. Each expert that the LRU holds and we do not is a hit it may have and we may miss, one at
most: back in use, it is taken in again. So such a departure is made only

- where it is free: the LRU itself is sure to throw that expert out before its layer is visited again, since the
  layers in between use more experts than there is room for; or
- out of what was won: our hits so far, less the LRU's, less the departures already at stake. The first winnings are
  free ones: a prompt uses nearly all experts of a layer, and so lets the LRU lose what it held.

Hence hits >= those of the LRU after every visit of any load whose layers are visited in turn (the last one of an
iteration may be left out), with at least `min_per_visit` experts each. There is always a harmless expert to throw
out: as many as the LRU holds and we lack, we hold and it lacks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from weighbridge.models.experts.ways import Expert, Hottest, LayeredLru, PlainLru, Way

#: Half-life, in iterations, of how often each way of keeping would have hit.
SCORE_HALF_LIFE = 25.0

#: Hits by which another way must lead before it is followed: a share of those of the present one, and a number.
LEAD_SHARE, LEAD_HITS = 0.02, 4.0

#: Whether the way followed and the LRU hold a resident.
_IDLE, _WANTED, _UNWANTED = (False, False), (True, False), (False, True)


class HeatAware:
    """What is really resident: `capacity` experts of `layers` layers, the first ones of each layer to begin with.

    min_per_visit: experts that each visit of a layer uses at least; the top-k of the model.
    """

    def __init__(self, layers: int, experts: int, capacity: int, min_per_visit: int = 1) -> None:
        rooms = [
            min(experts, capacity * (layer + 1) // layers - capacity * layer // layers)
            for layer in range(layers)
        ]
        held = [(layer, number) for layer, room in enumerate(rooms) for number in range(room)]
        self._capacity = capacity
        self._lru = PlainLru(capacity, held)
        self._ways: dict[str, Way] = {
            "lru": self._lru,
            "layered": LayeredLru(rooms, held),
            "hottest": Hottest(rooms, experts, held),
        }
        self._scores = dict.fromkeys(self._ways, 0.0)
        self._fading = 0.5 ** (1.0 / SCORE_HALF_LIFE)
        self.follows = "hottest"  # what is free to depart from is better departed from at once
        self.resident: set[Expert] = set(held)
        # Residents that the LRU or the way followed does not hold: by whether (the way, the LRU) holds them. Those
        # that became so last are last.
        self._apart: dict[tuple[bool, bool], OrderedDict[Expert, None]] = {
            kind: OrderedDict() for kind in (_IDLE, _WANTED, _UNWANTED)
        }
        self._stakes = _Stakes(layers, capacity, min_per_visit)
        self.hits = 0
        self.lru_hits = 0  # of a plain LRU of the same capacity

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[list[Expert], list[Expert]]:
        """Note that `layer` uses `experts`; returns (those to take in, those that leave for them)."""
        if layer == 0:
            self._choose()
        used = [(layer, number) for number in experts]
        missing = [expert for expert in used if expert not in self.resident]
        self.hits += len(used) - len(missing)
        self._play(layer, used, experts)
        self._stakes.visited(layer, len(used))
        return self._admit(missing)

    def _choose(self) -> None:
        """Follow another way where it leads clearly, or the present one has fallen behind the LRU."""
        scores, present = self._scores, self.follows
        best = max(scores, key=scores.__getitem__)
        leads = scores[best] > scores[present] * (1.0 + LEAD_SHARE) + LEAD_HITS
        if leads or scores[present] < scores["lru"]:
            self.follows = best
            for expert in self.resident:
                self._file(expert)
        for name in scores:
            scores[name] *= self._fading

    def _play(self, layer: int, used: Sequence[Expert], experts: Sequence[int]) -> None:
        """Let every way act on paper, then note where each of them and we differ."""
        lru, resident = self._lru, self.resident
        before = {expert for expert in used if lru.holds(expert)}
        changed = dict.fromkeys(used)
        for name, way in self._ways.items():
            hits, gone = way.visit(layer, experts)
            self._scores[name] += hits
            if way is lru:
                self.lru_hits += hits
                before.update(expert for expert in gone if expert not in changed)
            if way is lru or name == self.follows:
                changed |= dict.fromkeys(gone)
        for expert in changed:
            if expert in resident:
                self._file(expert)
            else:
                self._stakes.add(expert[0], lru.holds(expert) - (expert in before))

    def _admit(self, missing: Sequence[Expert]) -> tuple[list[Expert], list[Expert]]:
        """Take in what the way wants, and what would be a risk to leave out."""
        lru, way, stakes = self._lru, self._ways[self.follows], self._stakes
        came: list[Expert] = []
        gone: list[Expert] = []
        # What may be put at stake once all of `missing` that are a risk were taken in.
        spare = self.hits - self.lru_hits - stakes.total
        spare += sum(stakes.risks(expert) for expert in missing if lru.holds(expert))
        for expert in missing:
            wanted = way.holds(expert)
            risk = stakes.risks(expert) if lru.holds(expert) else 0
            if len(self.resident) >= self._capacity:
                victim, price = self._victim(wanted, risk, spare)
                spare -= price
                if victim is None:
                    continue
                self._remove(victim)
                gone.append(victim)
            self._add(expert)
            came.append(expert)
        return came, gone

    def _victim(self, wanted: bool, risk: int, spare: int) -> tuple[Expert | None, int]:
        """Return who leaves for a missing expert (None: it stays out), and what that puts at stake."""
        idle, beyond, unwanted = self._apart[_IDLE], self._apart[_WANTED], self._apart[_UNWANTED]
        if not wanted and not risk:
            return None, 0
        if idle:
            return next(iter(idle)), 0
        if wanted and unwanted:
            oldest = next(iter(unwanted))
            price = self._stakes.risks(oldest)
            if price <= spare:
                return oldest, price
        if risk and (wanted or risk > spare):
            return next(reversed(beyond)), 0  # fell out of the LRU last: in a cycle its turn is farthest away
        return None, risk

    def _add(self, expert: Expert) -> None:
        self.resident.add(expert)
        self._file(expert)
        if self._lru.holds(expert):
            self._stakes.add(expert[0], -1)

    def _remove(self, expert: Expert) -> None:
        self.resident.remove(expert)
        for kind in self._apart.values():
            kind.pop(expert, None)
        if self._lru.holds(expert):
            self._stakes.add(expert[0], 1)

    def _file(self, expert: Expert) -> None:
        """Put a resident where it belongs; if it is there already, it keeps its place."""
        where = self._ways[self.follows].holds(expert), self._lru.holds(expert)
        for kind, members in self._apart.items():
            if kind == where:
                members.setdefault(expert)
            else:
                members.pop(expert, None)


class _Stakes:
    """How many hits the LRU may still have and we miss: the experts it holds and we lack.

    Those of a layer do not count once the LRU is sure to throw them out before the layer's next visit: what was
    used since its last visit, and at least `min_per_visit` experts of each layer in between, leave no room for them.
    Layers become hopeless in the order in which they will be visited.
    """

    def __init__(self, layers: int, capacity: int, min_per_visit: int) -> None:
        self._layers, self._capacity, self._min_per_visit = layers, capacity, min_per_visit
        self._lacking = [0] * layers  # held by the LRU, not resident
        self._uses, self._uses_at = 0, [0] * layers  # in all, and at the end of each layer's last visit
        self._last = layers - 1
        self._hopeless = 0  # layers, of those to be visited next
        self.total = 0  # lacking experts of the layers that are not hopeless

    def risks(self, expert: Expert) -> int:
        """Return 1 when lacking this expert, held by the LRU, counts; else 0."""
        return int(not self._is_hopeless(expert[0]))

    def add(self, layer: int, lacking: int) -> None:
        self._lacking[layer] += lacking
        if not self._is_hopeless(layer):
            self.total += lacking

    def visited(self, layer: int, uses: int) -> None:
        """Note how many experts `layer` has used."""
        while True:
            self._last = (self._last + 1) % self._layers
            if self._hopeless:
                self._hopeless -= 1
                self.total += self._lacking[self._last]
            if self._last == layer:
                break
            self._uses_at[self._last] = self._uses  # left out: counted since, no expert is counted twice
        self._uses += uses
        self._uses_at[layer] = self._uses
        while self._hopeless < self._layers and self._room_is_gone():
            self.total -= self._lacking[self._next_layer()]
            self._hopeless += 1

    def _next_layer(self) -> int:
        """Return the first layer that is not hopeless."""
        return (self._last + 1 + self._hopeless) % self._layers

    def _room_is_gone(self) -> bool:
        between = max(self._hopeless - 1, 0)  # the last layer of an iteration may be left out
        used = self._uses - self._uses_at[self._next_layer()]
        return used + self._min_per_visit * between >= self._capacity

    def _is_hopeless(self, layer: int) -> bool:
        return (layer - self._last - 1) % self._layers < self._hopeless
