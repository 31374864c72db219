"""A predictor that asks /v1/decisions of a real server over a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.server.running import free_port, serving
from tests.tiny import make_tiny
from weighbridge.errors import BadInput
from weighbridge.flow import DecisionPredictor, GuessedCall, Prediction, guess, step
from weighbridge.flow.flow import flow
from weighbridge.flow.llm import decide

OUTCOMES = {"delivery": 1, "damage": 2, "other": 3}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(make_tiny("llama", tmp_path_factory.mktemp("decide") / "tiny")) as (found, _):
        yield found


def predicted(predictor: DecisionPredictor, text: str) -> list[Prediction]:
    async def ask() -> list[Prediction]:
        return list(await predictor.predict(GuessedCall("site", (text,), {})))

    return asyncio.run(ask())


def test_outcomes_are_ranked_by_their_probabilities(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "LEAST_MASS", 0.0)  # a model of chance says none of them
    found = predicted(DecisionPredictor(url, "What is it about?", OUTCOMES), "The parcel is late.")
    assert sorted(one.value for one in found) == [1, 2, 3]
    assert [one.kind[:2] for one in found] == [("decision", 0), ("decision", 1), ("decision", 2)]
    tenths = [one.kind[2] for one in found]
    assert tenths == sorted(tenths, reverse=True)
    assert 0 <= tenths[0] <= 9


def test_what_the_model_would_not_have_said_is_no_prediction(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "LEAST_MASS", 1.1)
    assert predicted(DecisionPredictor(url, "What is it about?", OUTCOMES), "x") == []


def test_without_a_server_or_a_model_there_is_no_prediction(url: str) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    assert predicted(DecisionPredictor(gone, "What?", OUTCOMES), "x") == []
    assert predicted(DecisionPredictor(url, "What?", OUTCOMES, model="nobody"), "x") == []
    with pytest.raises(BadInput):
        DecisionPredictor(url, "What?", {"a": 1})


def test_a_flow_bets_on_it_and_keeps_what_is_true(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "LEAST_MASS", 0.0)
    predictor = DecisionPredictor(url, "What is it about?", OUTCOMES)

    @step(effect="read")
    async def classify(text: str) -> int:
        await asyncio.sleep(0.05)
        return 2

    @flow
    async def support(text: str) -> int:
        return await guess(classify(text), by=predictor)

    async def run() -> int:
        return await support("The parcel is late.")

    assert asyncio.run(run()) == 2
