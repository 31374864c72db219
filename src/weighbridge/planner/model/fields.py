"""The fields of a configuration as the planner reads them: it also remembers what it had to assume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weighbridge.models.files.fields import Fields
from weighbridge.planner.model.architecture import Assumption


class ModelFields(Fields):
    """Fields that share one list of assumptions with the objects nested in them."""

    def __init__(self, values: Mapping[str, Any], assumptions: list[Assumption] | None = None) -> None:
        super().__init__(values)
        self.assumptions: list[Assumption] = [] if assumptions is None else assumptions

    def inner(self, *names: str) -> ModelFields | None:
        """Return the object under the first of `names` that is there, with the same assumptions."""
        values = self.nested(*names)
        return None if values is None else ModelFields(values, self.assumptions)

    def with_guess(self, guess: Assumption) -> ModelFields:
        """Return the same fields with the guessed one filled in."""
        self.assume(guess)
        return ModelFields({**self.values, guess.field: guess.value}, self.assumptions)

    def assume(self, assumption: Assumption) -> None:
        """State an assumption, once."""
        if assumption not in self.assumptions:
            self.assumptions.append(assumption)
