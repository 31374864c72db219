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

FORMAT = 2
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
class Baseline:
    """What the labels were like: drift is measured from here. Mean quality of each side, of ten equal parts of
    the labels by rising score (each label scored by a model that did not see it), and how many labels."""

    edge: tuple[float, ...]
    cloud: tuple[float, ...]
    labels: int


@dataclass(frozen=True, slots=True)
class TrainedRouter:
    """What `route train` writes. `judge` None: the labels held no answers of the edge."""

    prompt: Model
    ranks: Isotonic  # gain -> share of the labels that gain less: the score in [0, 1]
    threshold: float
    baseline: Baseline
    judge: Model | None = None
    judge_ranks: Isotonic | None = None  # the same for the judge
    certainty: Isotonic | None = None  # the judge's edge output -> probability that the answer is right
    judge_has_signals: bool = False
    judge_has_agreement: bool = False

    @property
    def trained_on(self) -> int:
        return self.baseline.labels

    def score(self, prompt: str) -> float:
        """Difficulty in [0, 1]: the share of training prompts that have less to gain from the cloud."""
        return self.ranks(float(gain(self.prompt.outputs(prompt_features(prompt), prompt))))

    __call__ = score

    def cascade_score(
        self, prompt: str, answer: str, signals: Signals | None = None, agreement: float | None = None
    ) -> float:
        """The same after the local answer is there; the prompt's own score where no judge was trained."""
        if self.judge is None or self.judge_ranks is None:
            return self.score(prompt)
        return self.judge_ranks(float(gain(self._judged(prompt, answer, signals, agreement))))

    def confidence(
        self, prompt: str, answer: str, signals: Signals | None = None, agreement: float | None = None
    ) -> float:
        """Calibrated probability that the local answer is right. Raises BadInput without a judge."""
        if self.certainty is None:
            raise BadInput("this router was trained without the edge's answers, so it cannot judge them")
        return self.certainty(float(self._judged(prompt, answer, signals, agreement)[0]))

    def _judged(
        self, prompt: str, answer: str, signals: Signals | None, agreement: float | None
    ) -> np.ndarray:
        assert self.judge is not None
        if (self.judge_has_signals and signals is None) or (self.judge_has_agreement and agreement is None):
            lacks = "edge_logprobs" if self.judge_has_signals and signals is None else "edge_samples"
            raise BadInput(f"this judge was trained with {lacks}; it needs them here, too")
        known = signals if self.judge_has_signals else None
        agreeing = agreement if self.judge_has_agreement else None
        return self.judge.outputs(judge_features(prompt, answer, known, agreeing), answer)

    def save(self, path: Path) -> None:
        fields = {"format": FORMAT, "kind": "weighbridge-router", **_plain(self)}
        path.write_text(json.dumps(fields), encoding="utf-8")


def judge_features(prompt: str, answer: str, signals: Signals | None, agreement: float | None) -> list[float]:
    """Of the answer, then of the prompt."""
    return answer_features(prompt, answer, signals, agreement) + prompt_features(prompt)


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
            baseline=_baseline(fields["baseline"]),
            judge=_model(judge) if judge else None,
            judge_ranks=Isotonic(**_tuples(fields["judge_ranks"])) if judge else None,
            certainty=Isotonic(**_tuples(fields["certainty"])) if judge else None,
            judge_has_signals=bool(fields["judge_has_signals"]),
            judge_has_agreement=bool(fields["judge_has_agreement"]),
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


def _baseline(fields: dict[str, Any]) -> Baseline:
    return Baseline(tuple(fields["edge"]), tuple(fields["cloud"]), int(fields["labels"]))


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
