"""What a run looks like afterwards: in words, as a timeline, as a page, as JSON and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weighbridge.errors import BadInput
from weighbridge.flow import Flow, flow, guess, step
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.flow.report.explain import explain
from weighbridge.flow.report.record import mark_critical
from weighbridge.flow.report.record_json import record_from_json, record_json
from weighbridge.flow.report.timeline import text
from weighbridge.flow.report.timeline_page import page


@step(effect="pure", name="think <fast>")
async def think(n: int) -> int:
    await asyncio.sleep(n)
    return n


@step(effect="read", name="look")
async def look(n: int) -> int:
    await asyncio.sleep(1)
    return n


def ran() -> Flow[[], Any]:
    @flow(name="trip", value_per_second=1.0)
    async def body() -> int:
        aside = look(9)
        seen = await look(await guess(think(3), by=lambda _: 3))
        return seen + await aside

    run_virtual(body())
    return body


def test_the_critical_path_is_that_of_the_run_without_its_bets() -> None:
    record = ran().last
    assert record is not None
    mark_critical(record)
    assert [(span.name, span.critical) for span in record.spans] == [
        ("look", False),
        ("think <fast>", True),
        ("look", True),
    ]
    assert record.spans[2].bet
    assert record.spans[2].status == "committed"


def test_a_run_in_words_and_bars() -> None:
    body = ran()
    assert "think <fast> = 3" in body.explain()
    assert "-> won 1.000 s" in body.explain()
    assert "Bets: 1 won, 0 lost, 0 declined; 1.000 s worked ahead" in body.explain()
    lines = body.timeline(100).split("\n")
    assert lines[0].startswith("trip  run ")
    assert "3.000 s" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["look", "think", "look"]


def test_a_run_as_a_page() -> None:
    html = ran().timeline_html()
    assert html.startswith("<!doctype html>")
    assert "think &lt;fast&gt;" in html
    assert "<fast>" not in html
    assert "won 1 s" in html


def test_a_saved_record_tells_the_same() -> None:
    record = ran().last
    assert record is not None
    again = record_from_json(record_json(record))
    assert (explain(again), text(again), page(again)) == (explain(record), text(record), page(record))
    with pytest.raises(BadInput, match="not the record of a run"):
        record_from_json(b'{"flow": "trip"}')
