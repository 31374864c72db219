"""What is known of one replica's abilities: what the operator states, what its pages tell, what it refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weighbridge.fleet.abilities.ability import NOTHING, Ability, Needs

#: Seconds that a refusal is remembered, and at most, doubled with each one that follows.
REMEMBERED, LONGEST_REMEMBERED = 30.0, 600.0
#: The same for what was served there before: that it cannot any more is likely a passing thing.
DOUBTED = 2.0


@dataclass(slots=True)
class RefusedAbility:
    """A refusal that counts until `until` on the gateway's clock; `times` in a row."""

    until: float
    times: int
    why: str


@dataclass(slots=True)
class KnownAbilities:
    """Pure: times are passed in. What is stated always holds; a refusal counts more than what a page tells.

    Nothing known of an ability is None: it is tried, where nobody is known to have it.
    """

    stated: Mapping[Ability, bool] = field(default_factory=dict)
    told: Mapping[Ability, bool] = field(default_factory=dict)
    served: Needs = NOTHING  # what it has answered since it was last started
    _refused: dict[Ability, RefusedAbility] = field(default_factory=dict)
    _lacking: Needs = NOTHING  # without what was refused

    def __post_init__(self) -> None:
        self.stated = _in_full(self.stated)
        self.tell(self.told)

    def tell(self, told: Mapping[Ability, bool]) -> None:
        """Take in what its pages say, in place of what they said before."""
        self.told = _in_full(told)
        words = {**self.told, **self.stated}
        self._lacking = frozenset(ability for ability, has in words.items() if not has)

    def can(self, ability: Ability, now: float) -> bool | None:
        """Whether it has an ability; None: nobody knows."""
        if ability in self.stated:
            return self.stated[ability]
        refused = self._refused.get(ability)
        if refused is not None and now < refused.until:
            return False
        return self.told.get(ability, True if ability in self.served else None)

    def lacks(self, needs: Needs, now: float) -> bool:
        """Whether it is known not to have all of `needs`. Asked of every replica for every request."""
        if self._lacking and not self._lacking.isdisjoint(needs):
            return True
        return bool(self._refused) and any(
            one in self._refused and self.can(one, now) is False for one in needs
        )

    def lacking(self, needs: Needs, now: float) -> Needs:
        """Which of `needs` it is known not to have."""
        return frozenset(one for one in needs if self.can(one, now) is False)

    def has_all(self, needs: Needs, now: float) -> bool:
        """Whether it is known to have every one of `needs`."""
        return all(self.can(one, now) for one in needs)

    def refuse(self, abilities: Needs, now: float, why: str) -> None:
        """Remember for a while that it refused these."""
        for ability in abilities - self.stated.keys():
            before = self._refused.get(ability)
            times = 1 if before is None else before.times + 1
            first = DOUBTED if ability in self.served else REMEMBERED
            self._refused[ability] = RefusedAbility(
                now + min(first * 2 ** min(times - 1, 16), LONGEST_REMEMBERED), times, why
            )

    def answered(self, needs: Needs) -> None:
        """Take note that a request with these needs was served."""
        if self._refused:
            for ability in needs:
                self._refused.pop(ability, None)
        if not needs <= self.served:
            self.served |= needs

    def started_anew(self) -> None:
        """Forget what was seen of it: it was away, and may have come back as something else."""
        self.served = NOTHING
        self._refused.clear()

    def why(self, ability: Ability, now: float) -> str:
        """Where it is known from that it lacks an ability."""
        if self.stated.get(ability) is False:
            return "by its `abilities:`"
        refused = self._refused.get(ability)
        if refused is not None and now < refused.until:
            return refused.why
        return "as its pages tell"

    def as_dict(self, now: float) -> dict[str, Any]:
        """What is known, for `/v1/load`: true and false by name, and what nobody knows left out."""
        known = {ability.value: self.can(ability, now) for ability in Ability}
        return {name: has for name, has in known.items() if has is not None}


def _in_full(words: Mapping[Ability, bool]) -> Mapping[Ability, bool]:
    """Where nothing is said of calls that must be made, they are as other calls of tools are."""
    if Ability.TOOLS not in words or Ability.FORCED_TOOLS in words:
        return words
    return {**words, Ability.FORCED_TOOLS: words[Ability.TOOLS]}
