"""A trained model: measured features through random Fourier features, text through weighed n-grams, vectors from
elsewhere as they are, one ridge over all. Scoring needs numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from weighbridge.routes.difficulty.embedders.vectors import Vector
from weighbridge.routes.difficulty.features import hashed

#: Standardised features are cut off here: a prompt unlike all labels must not run away.
LIMIT = 4.0
OUTPUTS = ("edge", "cloud", "gain")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Kernel: `smooth` RBFs of width `gamma` + `straight` linear + `text` n-grams, on features scaled to unit
    variance and divided by the root of their number."""

    gamma: float = 1.0
    smooth: float = 1.0
    straight: float = 0.0
    text: float = 1.0


@dataclass(frozen=True, slots=True)
class Space:
    """How rows are made. Shapes: mean, deviation (d,); directions (D, d); offsets (D,); rarity (COLUMNS,)."""

    recipe: Recipe
    mean: np.ndarray
    deviation: np.ndarray
    directions: np.ndarray
    offsets: np.ndarray
    rarity: np.ndarray

    def measured(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features to (n, D + d) columns: cosines whose products approximate the RBF kernel
        (Rahimi and Recht 2007), then the features themselves."""
        scaled = np.clip((features - self.mean) / self.deviation, -LIMIT, LIMIT) / np.sqrt(len(self.mean))
        angles = scaled @ self.directions.T + self.offsets
        waves = np.cos(angles) * np.sqrt(2.0 * self.recipe.smooth / len(self.offsets))
        columns: np.ndarray = np.hstack([waves, scaled * np.sqrt(self.recipe.straight)])
        return columns

    def weighed(self, columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The n-grams' weights after rarity, at unit length times the root of `text`."""
        values = weights * self.rarity[columns]
        norm = float(np.linalg.norm(values))
        scale = float(np.sqrt(self.recipe.text)) / norm if norm > 0.0 else 0.0
        scaled: np.ndarray = values * scale
        return scaled


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a vector as a linear kernel of weight `share` beside the others. Shapes: mean, deviation (w,);
    weights (w, 3). `share` 0: cross-validation found that it tells nothing."""

    source: str
    start: int  # of the part in the source's values
    share: float
    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    def columns(self, values: np.ndarray) -> np.ndarray:
        """(..., w) columns of the part, out of (..., width) values."""
        return spread(values[..., self.start : self.start + len(self.mean)], self.mean, self.deviation)


def spread(part: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Scaled to unit variance, cut off, and divided by the root of their number: rows of length one, on average."""
    result: np.ndarray = np.clip((part - mean) / deviation, -LIMIT, LIMIT) / np.sqrt(len(mean))
    return result


@dataclass(frozen=True, slots=True)
class Model:
    """`weights`: (columns of measured, 3) and (COLUMNS, 3) for the three outputs; `bias` (3,)."""

    space: Space
    measured_weights: np.ndarray
    text_weights: np.ndarray
    bias: np.ndarray
    blocks: tuple[Block, ...] = ()

    def outputs(
        self, features: list[float], text: str, vectors: Mapping[str, Vector] | None = None
    ) -> np.ndarray:
        """Expected quality of the edge, of the cloud, and the cloud's gain over the edge."""
        row = self.space.measured(np.array([features]))[0]
        columns, weights = hashed(text)
        values = self.space.weighed(columns, weights)
        result: np.ndarray = self.bias + row @ self.measured_weights + values @ self.text_weights[columns]
        for block in self.blocks:
            if block.share > 0.0 and vectors is not None:
                result = result + block.columns(vectors[block.source].values) @ block.weights
        return result


def gain(outputs: np.ndarray) -> np.ndarray:
    """What sending to the cloud brings: the mean of the direct estimate and of the difference of the two."""
    result: np.ndarray = 0.5 * (outputs[..., 2] + outputs[..., 1] - outputs[..., 0])
    return result
