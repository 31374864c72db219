"""What `route train` writes: heads for what may be known of a prompt, a judge of answers, and their JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.routes.difficulty.embedders.vectors import Source, Vector, mismatch
from weighbridge.routes.difficulty.features import answer_features, prompt_features
from weighbridge.routes.difficulty.isotonic import Isotonic
from weighbridge.routes.difficulty.model import OUTPUTS, Block, Model, Recipe, Space, gain
from weighbridge.routes.judge import Signals
from weighbridge.state.database import sentence
from weighbridge.state.documents import replace_file
from weighbridge.state.schema import DocumentSchema, unchanged

#: A trained router as JSON. Before version 2 it lacks what a head needs.
ROUTER = DocumentSchema("router", (unchanged, unchanged), key="format", oldest=2, remedy="train it again")


@dataclass(frozen=True, slots=True)
class Head:
    """A model of prompts that reads the vectors of `sources` beside the text."""

    sources: tuple[str, ...]
    model: Model
    ranks: Isotonic


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
    sources: tuple[Source, ...] = ()  # of the vectors it was trained with
    heads: tuple[Head, ...] = ()  # for each choice of sources that tell it anything, most of them first

    @property
    def trained_on(self) -> int:
        return self.baseline.labels

    @property
    def wanted(self) -> tuple[Source, ...]:
        """The sources whose vectors tell it anything; no others need be asked for."""
        read = {name for head in self.heads for name in head.sources}
        return tuple(one for one in self.sources if one.name in read)

    def shares(self) -> dict[str, list[float]]:
        """How much each part of each source counts in the head that reads most; zeros: nothing was found in it."""
        found = {one.name: [0.0] * len(one.parts) for one in self.sources}
        for head in reversed(self.heads):
            for one in self.sources:
                starts = [sum(one.parts[:place]) for place in range(len(one.parts))]
                shares = {b.start: b.share for b in head.model.blocks if b.source == one.name}
                if shares:
                    found[one.name] = [shares.get(start, 0.0) for start in starts]
        return found

    def head(self, vectors: Mapping[str, Vector] | None) -> Head | None:
        """The one that reads most of what is here; None: the text alone. Raises BadInput for foreign vectors."""
        here = vectors or {}
        for source in self.sources:
            if source.name in here and here[source.name].source != source:
                raise BadInput(mismatch(source, here[source.name].source))
        return next((one for one in self.heads if here.keys() >= set(one.sources)), None)

    def score(self, prompt: str, vectors: Mapping[str, Vector] | None = None) -> float:
        """Difficulty in [0, 1]: the share of training prompts that have less to gain from the cloud.

        `vectors` by the name of their source; what is missing is done without.
        """
        head, features = self.head(vectors), prompt_features(prompt)
        if head is None:
            return self.ranks(float(gain(self.prompt.outputs(features, prompt))))
        return head.ranks(float(gain(head.model.outputs(features, prompt, vectors))))

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
        """Write it whole or not at all. Raises BadInput where it cannot be written."""
        fields = ROUTER.stamped({"kind": "weighbridge-router", **_plain(self)})
        for head in fields["heads"]:
            del head["model"]["space"]  # that of `prompt`
        try:
            replace_file(path, json.dumps(fields).encode())
        except OSError as error:
            raise BadInput(sentence(error, ROUTER.name, path)) from error


def judge_features(prompt: str, answer: str, signals: Signals | None, agreement: float | None) -> list[float]:
    """Of the answer, then of the prompt."""
    return answer_features(prompt, answer, signals, agreement) + prompt_features(prompt)


def load_router(path: Path) -> TrainedRouter:
    """Raises BadInput where the file is none that `route train` wrote."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.get("kind") != "weighbridge-router":
            raise BadInput(f"{path} is no router; write one with `weighbridge route train`")
        fields = ROUTER.read(fields, str(path))
        judge, prompt = fields["judge"], _model(fields["prompt"])
        return TrainedRouter(
            prompt=prompt,
            ranks=Isotonic(**_tuples(fields["ranks"])),
            threshold=float(fields["threshold"]),
            baseline=_baseline(fields["baseline"]),
            judge=_model(judge) if judge else None,
            judge_ranks=Isotonic(**_tuples(fields["judge_ranks"])) if judge else None,
            certainty=Isotonic(**_tuples(fields["certainty"])) if judge else None,
            judge_has_signals=bool(fields["judge_has_signals"]),
            judge_has_agreement=bool(fields["judge_has_agreement"]),
            sources=tuple(
                Source(one["name"], one["model"], tuple(map(int, one["parts"])))
                for one in fields.get("sources", ())
            ),
            heads=tuple(_head(one, prompt.space) for one in fields.get("heads", ())),
        )
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read the router {path}: {error}") from error


def _plain(value: Any) -> Any:
    """Dataclasses and arrays as JSON; nine significant digits, since gains may be all but equal."""
    if isinstance(value, np.ndarray):
        return [float(f"{one:.9g}") for one in value.ravel()]
    if hasattr(value, "__slots__") and hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(map(float, values)) for name, values in fields.items()}


def _baseline(fields: dict[str, Any]) -> Baseline:
    return Baseline(tuple(fields["edge"]), tuple(fields["cloud"]), int(fields["labels"]))


def _head(fields: dict[str, Any], space: Space) -> Head:
    model = _model(fields["model"], space)
    return Head(tuple(fields["sources"]), model, Isotonic(**_tuples(fields["ranks"])))


def _model(fields: dict[str, Any], space: Space | None = None) -> Model:
    """`space`: where the file leaves it to another model's."""
    return Model(
        _space(fields["space"]) if space is None else space,
        np.array(fields["measured_weights"]).reshape(-1, len(OUTPUTS)),
        np.array(fields["text_weights"]).reshape(-1, len(OUTPUTS)),
        np.array(fields["bias"]),
        tuple(_block(one) for one in fields.get("blocks", ())),
    )


def _space(fields: dict[str, Any]) -> Space:
    return Space(
        recipe=Recipe(**fields["recipe"]),
        mean=np.array(fields["mean"]),
        deviation=np.array(fields["deviation"]),
        directions=np.array(fields["directions"]).reshape(-1, len(fields["mean"])),
        offsets=np.array(fields["offsets"]),
        rarity=np.array(fields["rarity"]),
    )


def _block(fields: dict[str, Any]) -> Block:
    return Block(
        str(fields["source"]),
        int(fields["start"]),
        float(fields["share"]),
        np.array(fields["mean"]),
        np.array(fields["deviation"]),
        np.array(fields["weights"]).reshape(-1, len(OUTPUTS)),
    )
