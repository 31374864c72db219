"""Drift since training, and thresholds suggested from shadow evaluations: against rows whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.routes.difficulty.features import FEATURES, prompt_features
from weighbridge.routes.difficulty.labels import Label
from weighbridge.routes.difficulty.train import train
from weighbridge.routes.difficulty.trained import TrainedRouter, load_router
from weighbridge.routes.learn.drift import drift, population_stability
from weighbridge.routes.learn.suggest import suggest

WORDS = [
    "red",
    "green",
    "blue",
    "seven",
    "river",
    "stone",
    "cloud",
    "apple",
    "winter",
    "paper",
    "glass",
    "copper",
]


def prompt(rng: np.random.Generator, hard: bool) -> str:
    words = " ".join(rng.choice(WORDS, 8))
    return f"Prove that {words} and {rng.integers(100, 999)} hold." if hard else f"Name {words}?"


@pytest.fixture(scope="module")
def router() -> TrainedRouter:
    """Half of the prompts are hard; there the edge is right in one of ten, elsewhere in nine of ten."""
    rng = np.random.default_rng(0)
    labels = []
    for number in range(400):
        hard = number % 2 == 0
        labels.append(Label(prompt(rng, hard), float(rng.random() < (0.1 if hard else 0.9)), 1.0))
    return train(labels)


def shadows(
    router: TrainedRouter, rng: np.random.Generator, hard: float, right: tuple[float, float]
) -> list[Any]:
    """`hard`: share of hard prompts; `right`: how often the edge is right on (easy, hard) ones."""
    rows = []
    for _ in range(400):
        is_hard = bool(rng.random() < hard)
        text = prompt(rng, is_hard)
        quality = float(rng.random() < right[is_hard])
        row = {"ticket": "t", "route": "auto", "score": router.score(text), "edge_quality": quality}
        row |= {"features": prompt_features(text), "threshold": 1.0, "edge_usd": 0.0, "cloud_usd": 0.001}
        rows.append(row)
    return rows


def test_features_have_their_names() -> None:
    assert len(FEATURES) == len(prompt_features("What is 2 + 2?")) == len(set(FEATURES))


def test_traffic_like_the_labels_has_not_drifted(router: TrainedRouter) -> None:
    rows = shadows(router, np.random.default_rng(1), 0.5, (0.9, 0.1))
    found = drift(router, rows, rows)
    assert found.findings == ()
    assert found.stability is not None
    assert found.stability < 0.1
    assert found.edge == pytest.approx(found.edge_expected, abs=0.1)


def test_other_prompts_are_seen_in_scores_and_features(router: TrainedRouter) -> None:
    rows = shadows(router, np.random.default_rng(2), 1.0, (0.9, 0.1))
    found = drift(router, rows, rows)
    assert found.stability is not None
    assert found.stability > 0.25
    assert abs(found.features[0][1]) > 0.5
    text = " ".join(found.findings)
    assert "shifted much" in text
    assert "unlike the labels" in text


def test_an_edge_that_got_worse_is_seen_although_the_prompts_are_the_same(router: TrainedRouter) -> None:
    rows = shadows(router, np.random.default_rng(3), 0.5, (0.6, 0.1))
    found = drift(router, rows, rows)
    assert found.surprise is not None
    assert found.surprise < -3
    assert any("worse" in one for one in found.findings)


def test_too_few_rows_say_nothing(router: TrainedRouter) -> None:
    rows = shadows(router, np.random.default_rng(4), 1.0, (0.0, 0.0))[:50]
    found = drift(router, rows, rows)
    assert (found.stability, found.edge, found.features, found.findings) == (None, None, (), ())


def test_the_index_of_an_even_spread_is_nought_and_of_a_point_large() -> None:
    assert population_stability(list(np.linspace(0.0, 1.0, 1000))) < 0.001
    assert population_stability([0.95] * 1000) > 2


def test_a_threshold_is_suggested_where_it_pays_and_its_gain_is_what_it_is(router: TrainedRouter) -> None:
    """The cloud costs a tenth of what a right answer is worth: hard prompts belong there, easy ones do not."""
    rows = shadows(router, np.random.default_rng(5), 0.5, (0.97, 0.1))
    one = suggest("score", rows, 1.01, 0.01, np.random.default_rng(0))
    assert one is not None
    assert one.worth_changing
    assert 0.2 < one.threshold < 0.8
    assert one.cloud_share == pytest.approx(0.5, abs=0.12)
    # half of the requests: nine of ten become right for a tenth of what that is worth
    assert one.gain == pytest.approx(0.5 * (0.9 * 0.01 - 0.001), rel=0.25)


def test_nothing_is_suggested_where_scores_say_nothing() -> None:
    rng = np.random.default_rng(6)
    rows = [
        {"score": float(rng.random()), "edge_quality": float(rng.random() < 0.9), "cloud_usd": 0.001}
        for _ in range(300)
    ]
    one = suggest("score", rows, 1.01, 0.01, np.random.default_rng(0))
    assert one is not None
    assert not one.worth_changing
    assert suggest("confidence", rows, 0.5, 0.01, np.random.default_rng(0)) is None


def test_a_confidence_threshold_pays_for_the_local_answer_too() -> None:
    """A cloud as dear as the answer is worth is never worth asking, however doubtful the edge."""
    rows = [
        {"confidence": n % 2, "edge_quality": n % 2, "cloud_usd": 0.012, "edge_usd": 0.001}
        for n in range(200)
    ]
    one = suggest("confidence", rows, 0.5, 0.01, np.random.default_rng(0))
    assert one is not None
    assert (one.threshold, one.cloud_share) == (0.0, 0.0)
    cheap = [{**row, "cloud_usd": 0.001} for row in rows]
    two = suggest("confidence", cheap, 0.0, 0.01, np.random.default_rng(0))
    assert two is not None
    assert two.worth_changing
    assert (two.cloud_share, two.quality) == (0.5, 1.0)


def test_the_report_says_drift_and_suggestion(router: TrainedRouter, tmp_path: Path) -> None:
    rows = shadows(router, np.random.default_rng(7), 1.0, (0.9, 0.1))
    tickets = [
        {
            "id": str(n),
            "model": "auto",
            "placement": "edge",
            "score": row["score"],
            "decisions": [],
            "e2e_ms": 5.0,
        }
        for n, row in enumerate(rows)
    ]
    for name, lines in (("tickets", tickets), ("shadow", rows)):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    router.save(tmp_path / "router.json")
    assert load_router(tmp_path / "router.json").baseline == router.baseline
    given = [f"--{name}={tmp_path / name}" for name in ("tickets", "shadow")]
    given += [f"--router={tmp_path / 'router.json'}", f"--html={tmp_path / 'page.html'}"]
    done = CliRunner().invoke(app, ["route", "report", *given])
    assert done.exit_code == 0, done.output
    assert "Drift: scores have shifted much" in done.output
    assert "Pre-router threshold:" in done.output
    assert "Drift: scores" in (tmp_path / "page.html").read_text(encoding="utf-8")
    unknown = CliRunner().invoke(app, ["route", "report", *given, "--route=other"])
    assert unknown.exit_code != 0
    summary = json.loads(CliRunner().invoke(app, ["route", "report", *given, "--json"]).output)
    assert summary["suggestions"][0]["kind"] == "score"
    assert summary["drift"]["requests"] == 400
