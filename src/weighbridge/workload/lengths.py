"""How long prompts and outputs are: distributions written in a few characters."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from weighbridge.errors import BadInput

_EXAMPLES = "200, uniform:10:400, exponential:200, lognormal:150:0.8 (median, sigma) or pareto:50:1.5"

#: Parameters of each kind, for messages.
_KINDS = {"fixed": 1, "uniform": 2, "exponential": 1, "lognormal": 2, "pareto": 2}


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts, at least 1 and at most `max_tokens`.

    `fixed` n; `uniform` low, high; `exponential` mean; `lognormal` median, sigma of the logarithm (what real
    prompts and answers resemble); `pareto` smallest, alpha (a heavy tail: infinite variance below 2).
    """

    kind: str
    parameters: tuple[float, ...]
    max_tokens: int = 1 << 20

    @staticmethod
    def parse(text: str, max_tokens: int = 1 << 20) -> Lengths:
        """Read `200`, or a kind with its parameters behind colons. Raises BadInput with examples otherwise."""
        name, *rest = text.strip().split(":")
        try:
            if not rest:
                name, rest = "fixed", [name]
            numbers = tuple(float(part) for part in rest)
            if len(numbers) != _KINDS[name] or not all(0.0 < n < math.inf for n in numbers):
                raise ValueError(name)
            if name == "uniform" and numbers[0] > numbers[1]:
                raise ValueError(name)
        except (KeyError, ValueError):
            raise BadInput(f"{text!r} is not a length: write for example {_EXAMPLES}") from None
        return Lengths(name, numbers, max_tokens)

    def draw(self, rng: random.Random) -> int:
        first, second = (*self.parameters, 0.0)[:2]
        if self.kind == "fixed":
            value = first
        elif self.kind == "uniform":
            value = rng.uniform(first, second)
        elif self.kind == "exponential":
            value = rng.expovariate(1.0 / first)
        elif self.kind == "lognormal":
            value = first * math.exp(rng.gauss(0.0, second))
        else:
            value = first * rng.paretovariate(second)
        return max(1, min(round(value), self.max_tokens))
