"""Calibrations of decisions: the line is a tenant's own, bounded, told with what it is worth, and applied."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.server.calibrated_decisions import CalibratedEncoder
from weighbridge.server.decisions.calibration import MOST_KNOTS, calibrate, worth
from weighbridge.server.decisions.labels import LabelShares
from weighbridge.server.decisions.store import MOST_OF_TENANT, CalibrationsKept
from weighbridge.wire.errors import ApiError
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocols.decisions import DecisionRequest, Predicate, decision_parts

QUESTION = {"type": "predicate", "name": "angry", "instructions": "The customer is angry."}


def overconfident(count: int, seed: int = 0) -> tuple[list[float], list[bool]]:
    """A model that says p where the truth is half as far from one half."""
    rng = random.Random(seed)
    said = [rng.random() for _ in range(count)]
    return said, [rng.random() < 0.5 + (p - 0.5) / 2 for p in said]


def test_a_line_mends_what_is_overconfident_on_examples_that_it_has_not_seen() -> None:
    made = calibrate(*overconfident(2000))
    assert made.after.ece < made.before.ece / 2
    assert made.after.brier < made.before.brier
    assert made.line(0.95) == pytest.approx(0.72, abs=0.08)
    fresh, came = overconfident(2000, seed=1)
    lined = worth(np.array([made.line(one) for one in fresh]), np.array(came, np.float64))
    assert lined.ece == pytest.approx(made.after.ece, abs=0.03)  # what was told of it holds


def test_one_that_knows_nothing_is_not_made_to_look_better_than_it_is() -> None:
    rng = random.Random(3)
    said = [rng.random() for _ in range(400)]
    made = calibrate(said, [rng.random() < 0.3 for _ in said])
    assert made.after.brier == pytest.approx(0.21, abs=0.03)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=20, max_size=80))
def test_a_line_rises_and_stays_within_bounds(examples: list[tuple[float, bool]]) -> None:
    said, came = [one for one, _ in examples], [one for _, one in examples]
    if len(set(came)) < 2:
        with pytest.raises(ValueError, match="alike"):
            calibrate(said, came)
        return
    made = calibrate(said, came)
    points = [made.line(place / 20) for place in range(21)]
    assert points == sorted(points)
    assert 0.0 <= points[0] <= points[-1] <= 1.0
    for shares in ((0.2, 0.3, 0.5), (1.0, 0.0)):
        applied = made.applied(LabelShares(shares, 0.9), lone=len(shares) == 2)
        assert sum(applied.shares) == pytest.approx(1.0)
        assert applied.mass == 0.9


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 1000))
def test_long_lines_are_thinned(seed: int) -> None:
    rng = random.Random(seed)
    said = sorted(rng.random() for _ in range(5000))
    made = calibrate(said, [place % 5000 >= rng.randrange(5000) for place in range(5000)])
    assert len(made.line.knots) <= MOST_KNOTS


def test_a_file_keeps_them_apart_and_bounded(tmp_path: Path) -> None:
    made = calibrate(*overconfident(50))
    store = CalibrationsKept(tmp_path / "kept" / "calibrations.sqlite")
    for number in range(MOST_OF_TENANT + 5):
        store.put("alice", "m", f"q{number}", made)
    store.put("bob", "m", "q0", made)
    assert len(store.of("alice")) == MOST_OF_TENANT
    assert store.find("alice", "m", ["q0", "q9"]) == {"q9": made}
    assert store.find("bob", "m", ["q0"]) == {"q0": made}
    assert store.find("alice", "other", ["q9"]) == {}
    again = CalibrationsKept(tmp_path / "kept" / "calibrations.sqlite")
    assert again.remove("bob", "m", "q0")
    assert not again.remove("bob", "m", "q0")
    assert store.of("bob") == []


ODD: list[Any] = [
    *(b"{", b"5", b"[]", b"{}", b"[" * 50_000, b'{"answers": 5}', b'{"answers": []}', b'{"answers": [5]}'),
    *(b'{"answers": [{}]}', b'{"answers": [{"type": "predicate", "probability": "x"}]}'),
    *(
        b'{"answers": [{"type": "predicate", "probability": null}, {}]}',
        b'{"answers": [{"probability": []}]}',
    ),
]


@pytest.mark.parametrize("body", ODD)
def test_a_server_behind_that_sends_no_decisions_is_a_bad_gateway(body: bytes) -> None:
    request = DecisionRequest(input="x", questions=[Predicate(instructions="y", name="angry")])
    encoder = CalibratedEncoder(request, {"angry": calibrate(*overconfident(50))})
    with pytest.raises(ApiError, match="sent no decisions") as caught:
        encoder.whole(WholeAnswer(body, decision_parts))
    assert caught.value.status == 502


def decided(server: str) -> dict[str, Any]:
    body = {"model": "tiny", "input": "It is late.", "questions": [QUESTION]}
    answer = httpx.post(f"{server}/v1/decisions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["answers"]
    return dict(found)


def test_answers_are_told_as_the_tenants_labels_have_them(server: str) -> None:
    raw = decided(server)
    assert "calibration" not in raw
    said, came = overconfident(300)
    examples = [{"probability": p, "outcome": y} for p, y in zip(said, came, strict=True)]
    url = f"{server}/v1/decisions/calibrations"
    asked = {"name": "angry", "model": "tiny", "examples": examples}
    made = httpx.post(url, json=asked, timeout=60).json()
    assert made["examples"] == 300
    assert made["after"]["ece"] < made["before"]["ece"]
    told = decided(server)
    assert told["uncalibrated"] == pytest.approx([raw["probability"]], rel=1e-6)
    assert told["probability"] == pytest.approx(calibrate(said, came).line(raw["probability"]), abs=1e-4)
    assert told["calibration"]["examples"] == 300
    assert [one["name"] for one in httpx.get(url).json()["data"]] == ["angry"]
    assert httpx.delete(f"{url}/angry?model=tiny").json()["deleted"]
    assert httpx.delete(f"{url}/angry?model=tiny").status_code == 404
    assert "calibration" not in decided(server)
    few = httpx.post(url, json={**asked, "examples": examples[:3]})
    assert (few.status_code, few.json()["error"]["param"]) == (400, "examples")
