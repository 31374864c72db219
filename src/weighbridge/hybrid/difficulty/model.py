"""A trained model: measured features through random Fourier features, text through weighed n-grams, one ridge
over both. Scoring needs numpy only; the file is JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.hybrid.difficulty.features import answer_features, hashed, prompt_features
from weighbridge.hybrid.difficulty.isotonic import Isotonic
from weighbridge.hybrid.signals import Signals

FORMAT = 1
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
class Model:
    """`weights`: (columns of measured, 3) and (COLUMNS, 3) for the three outputs; `bias` (3,)."""

    space: Space
    measured_weights: np.ndarray
    text_weights: np.ndarray
    bias: np.ndarray

    def outputs(self, features: list[float], text: str) -> np.ndarray:
        """Expected quality of the edge, of the cloud, and the cloud's gain over the edge."""
        row = self.space.measured(np.array([features]))[0]
        columns, weights = hashed(text)
        values = self.space.weighed(columns, weights)
        result: np.ndarray = self.bias + row @ self.measured_weights + values @ self.text_weights[columns]
        return result


def gain(outputs: np.ndarray) -> np.ndarray:
    """What sending to the cloud brings: the mean of the direct estimate and of the difference of the two."""
    result: np.ndarray = 0.5 * (outputs[..., 2] + outputs[..., 1] - outputs[..., 0])
    return result


@dataclass(frozen=True, slots=True)
class TrainedRouter:
    """What `route train` writes. `judge` None: the labels held no answers of the edge."""

    prompt: Model
    ranks: Isotonic  # gain -> share of the labels that gain less: the score in [0, 1]
    threshold: float
    judge: Model | None = None
    judge_ranks: Isotonic | None = None  # the same for the judge
    certainty: Isotonic | None = None  # the judge's edge output -> probability that the answer is right
    judge_has_signals: bool = False
    trained_on: int = 0

    def score(self, prompt: str) -> float:
        """Difficulty in [0, 1]: the share of training prompts that have less to gain from the cloud."""
        return self.ranks(float(gain(self.prompt.outputs(prompt_features(prompt), prompt))))

    __call__ = score

    def cascade_score(self, prompt: str, answer: str, signals: Signals | None = None) -> float:
        """The same after the local answer is there; the prompt's own score where no judge was trained."""
        if self.judge is None or self.judge_ranks is None:
            return self.score(prompt)
        return self.judge_ranks(float(gain(self._judged(prompt, answer, signals))))

    def confidence(self, prompt: str, answer: str, signals: Signals | None = None) -> float:
        """Calibrated probability that the local answer is right. Raises BadInput without a judge."""
        if self.certainty is None:
            raise BadInput("this router was trained without the edge's answers, so it cannot judge them")
        return self.certainty(float(self._judged(prompt, answer, signals)[0]))

    def _judged(self, prompt: str, answer: str, signals: Signals | None) -> np.ndarray:
        assert self.judge is not None
        return self.judge.outputs(judge_features(prompt, answer, signals, self.judge_has_signals), answer)

    def save(self, path: Path) -> None:
        fields = {"format": FORMAT, "kind": "weighbridge-router", **_plain(self)}
        path.write_text(json.dumps(fields), encoding="utf-8")


def judge_features(prompt: str, answer: str, signals: Signals | None, with_signals: bool) -> list[float]:
    """Of the answer and of the prompt. Where the judge was trained without signals they are left out."""
    known = signals if with_signals else None
    if with_signals and signals is None:
        raise BadInput("this judge was trained with the edge's log-probabilities; it needs them here, too")
    return answer_features(prompt, answer, known) + prompt_features(prompt)


def load_router(path: Path) -> TrainedRouter:
    """Raises BadInput where the file is none that `route train` wrote."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.get("kind") != "weighbridge-router":
            raise BadInput(f"{path} is no router; write one with `weighbridge route train`")
        if fields["format"] != FORMAT:
            raise BadInput(
                f"{path} has format {fields['format']}, this version reads {FORMAT}; train it again"
            )
        judge = fields["judge"]
        return TrainedRouter(
            prompt=_model(fields["prompt"]),
            ranks=Isotonic(**_tuples(fields["ranks"])),
            threshold=float(fields["threshold"]),
            judge=_model(judge) if judge else None,
            judge_ranks=Isotonic(**_tuples(fields["judge_ranks"])) if judge else None,
            certainty=Isotonic(**_tuples(fields["certainty"])) if judge else None,
            judge_has_signals=bool(fields["judge_has_signals"]),
            trained_on=int(fields["trained_on"]),
        )
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read the router {path}: {error}") from error


def _plain(value: Any) -> Any:
    """Dataclasses and arrays as JSON; six significant digits are more than the labels can tell apart."""
    if isinstance(value, np.ndarray):
        return [float(f"{one:.6g}") for one in value.ravel()]
    if hasattr(value, "__slots__") and hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return list(value) if isinstance(value, tuple) else value


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(map(float, values)) for name, values in fields.items()}


def _model(fields: dict[str, Any]) -> Model:
    space = fields["space"]
    width, outputs = len(space["mean"]), len(OUTPUTS)
    return Model(
        Space(
            recipe=Recipe(**space["recipe"]),
            mean=np.array(space["mean"]),
            deviation=np.array(space["deviation"]),
            directions=np.array(space["directions"]).reshape(-1, width),
            offsets=np.array(space["offsets"]),
            rarity=np.array(space["rarity"]),
        ),
        np.array(fields["measured_weights"]).reshape(-1, outputs),
        np.array(fields["text_weights"]).reshape(-1, outputs),
        np.array(fields["bias"]),
    )
