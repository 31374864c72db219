"""The rows that a router learns from, made a few at a time: hashed n-grams kept sparse, all else kept as measured.

A dense row of n-grams takes 16 KiB whatever the text, a sparse one six bytes for each n-gram that occurs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from weighbridge.routes.difficulty.alike import groups_of
from weighbridge.routes.difficulty.features import COLUMNS, hashed
from weighbridge.routes.difficulty.model import Space, spread


class Grams:
    """The hashed n-grams of many texts, not yet weighed or normalised: (n, COLUMNS), compressed by rows."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._columns: list[np.ndarray] = []  # of each text, rising
        self._values: list[np.ndarray] = []
        scratch = np.zeros(COLUMNS)
        for text in texts:
            columns, weights = hashed(text)
            np.add.at(scratch, columns, weights)
            used = np.flatnonzero(scratch)
            self._columns.append(used.astype(np.uint16))
            self._values.append(scratch[used].astype(np.float32))
            scratch[columns] = 0.0

    def __len__(self) -> int:
        return len(self._columns)

    def seen(self) -> np.ndarray:
        """In how many texts each column occurs."""
        counts = np.zeros(COLUMNS, np.int64)
        for columns in self._columns:
            counts[columns] += 1  # no column is in a row twice
        return counts

    def groups(self) -> np.ndarray:
        """(n,): a number for each text, the same for those that are nearly the same."""
        return groups_of(self._columns, COLUMNS)

    def dense(self, picks: np.ndarray) -> np.ndarray:
        """(len(picks), COLUMNS) float32."""
        rows = np.zeros((len(picks), COLUMNS), np.float32)
        for row, pick in zip(rows, picks.tolist(), strict=True):
            row[self._columns[pick]] = self._values[pick]
        return rows


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a source's vectors over all labels: `values` (n, w), which a `Block` will scale as here."""

    source: str
    start: int
    mean: np.ndarray
    deviation: np.ndarray
    values: np.ndarray
    share: float = 0.0

    @staticmethod
    def of(source: str, start: int, values: np.ndarray) -> Part:
        """A part without a share yet."""
        mean = values.mean(axis=0, dtype=np.float64)
        # Column by column: the differences of all at once would be as large as the table.
        deviation = np.array([values[:, place].std(dtype=np.float64) for place in range(values.shape[1])])
        return Part(source, start, mean, deviation + 1e-6, values)

    def columns(self, picks: np.ndarray) -> np.ndarray:
        """(len(picks), w): those labels' columns, as a `Block` will make them."""
        return spread(self.values[picks].astype(np.float64), self.mean, self.deviation)


@dataclass(frozen=True, slots=True)
class Rows:
    """Training data before a space is chosen: measured (n, d), hashed n-grams, targets (n, 3).

    `groups` (n,): numbers of labels whose prompts are nearly the same; None where there are too few to ask.
    """

    measured: np.ndarray
    grams: Grams
    targets: np.ndarray
    groups: np.ndarray | None = None


class Columns:
    """The columns of a space over all labels: what is measured, the n-grams that occur, then `parts` by their
    shares; parts without one are left out."""

    def __init__(self, rows: Rows, space: Space, parts: Sequence[Part] = ()) -> None:
        self._rows = rows
        self._space = space
        self.used = np.flatnonzero(space.rarity)  # columns of the n-grams
        self.parts = [part for part in parts if part.share > 0.0]

    def __len__(self) -> int:
        return len(self._rows.targets)

    @property
    def measured(self) -> int:
        """How many of the columns are measured: the first ones."""
        return len(self._space.offsets) + len(self._space.mean)

    def take(self, picks: np.ndarray) -> np.ndarray:
        """(len(picks), columns) float64."""
        grams = self._rows.grams.dense(picks) * self._space.rarity
        norms = np.linalg.norm(grams, axis=1, keepdims=True)
        grams *= np.sqrt(self._space.recipe.text) / np.where(norms > 0.0, norms, 1.0)
        weighed = [part.columns(picks) * np.sqrt(part.share) for part in self.parts]
        measured = self._space.measured(self._rows.measured[picks])
        return np.hstack([measured, grams[:, self.used], *weighed])
