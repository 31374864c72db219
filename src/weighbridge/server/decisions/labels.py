"""Labels as sequences of tokens: what must be asked of a model to know how likely each is, and what follows. Pure.

All labels of a question make a tree of tokens. Each of its inner nodes is one look at the model: how likely each child
is behind the prompt and the tokens that lead here. A label's probability is the product along its way. Where one label
begins another ("no", "no idea"), what goes on to the longer one is taken from the shorter one's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A way through the tree.
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """`forms[i]`: the ways in which label i may be written, none of them a way of another label. `nodes`: each inner
    node and the tokens that may follow it, the root first."""

    forms: tuple[tuple[Tokens, ...], ...]
    nodes: Mapping[Tokens, Tokens]

    def probabilities(self, looks: Mapping[Tokens, Sequence[float]]) -> list[float]:
        """How likely each label is, of all that the model could have said: their sum is the label mass.

        `looks`: of each node the logarithms of what follows it, in the order of `nodes`.
        """
        chance = {
            node: dict(zip(children, looks[node], strict=True)) for node, children in self.nodes.items()
        }
        return [sum(self._of(form, chance) for form in forms) for forms in self.forms]

    def _of(self, form: Tokens, chance: Mapping[Tokens, Mapping[int, float]]) -> float:
        reached = math.exp(sum(chance[form[:at]][token] for at, token in enumerate(form)))
        onwards = sum(math.exp(one) for one in chance.get(form, {}).values())
        return reached * max(1.0 - onwards, 0.0)


class TooManyNodes(ValueError):
    """A tree would have more nodes than may be looked at."""


def label_tree(forms: Sequence[Sequence[Tokens]], most: int = 1 << 20) -> LabelTree:
    """The tree of all labels. Raises ValueError for a form that is empty, or that two labels share, and TooManyNodes
    as soon as it has more than `most`."""
    owners: dict[Tokens, int] = {}
    following: dict[Tokens, dict[int, None]] = {(): {}}
    kept: list[tuple[Tokens, ...]] = []
    for label, ways in enumerate(forms):
        for form in ways:
            if not form:
                raise ValueError("a label has no tokens")
            if owners.setdefault(form, label) != label:
                raise ValueError("two labels are the same tokens")
            for at, token in enumerate(form):
                following.setdefault(form[:at], {})[token] = None
                if len(following) > most:
                    raise TooManyNodes
        kept.append(tuple(dict.fromkeys(ways)))
    return LabelTree(tuple(kept), {node: tuple(tokens) for node, tokens in following.items()})


@dataclass(frozen=True, slots=True)
class LabelShares:
    """How a question's labels share what fell on them: they sum to 1. `mass`: how much that was, of everything."""

    shares: tuple[float, ...]
    mass: float

    @property
    def best(self) -> int:
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    @property
    def expected(self) -> float:
        """The mean place, counted from 0."""
        return sum(place * share for place, share in enumerate(self.shares))


def shares_of(probabilities: Sequence[float]) -> LabelShares:
    """Labels that are all impossible share evenly: nothing speaks for one of them."""
    mass = math.fsum(probabilities)
    if mass <= 0.0:
        return LabelShares((1.0 / len(probabilities),) * len(probabilities), 0.0)
    return LabelShares(tuple(one / mass for one in probabilities), min(mass, 1.0))
