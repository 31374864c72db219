"""Where prompts leave the ones before them: found, shown without what must not be, bounded, and each tenant's own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import fleet
from tests.server.running import serving
from weighbridge.cost.step import StepCost
from weighbridge.server.engine.predecessors import (
    LEAST_COMMON,
    MOST_PROMPTS,
    SHOWN,
    Predecessors,
    common,
)
from weighbridge.ticket import prefix

PROMPTS = st.lists(st.integers(97, 100), max_size=40)
COST = StepCost(0.001, 0.004, 1e-3, 0.0, 0.0, per_prompt_pair=0.0)


def text(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def ids(words: str) -> list[int]:
    return list(map(ord, words))


def looking(hidden: str = "") -> Predecessors:
    def hide(shown: str) -> list[tuple[int, int, str]]:
        at = shown.find(hidden) if hidden else -1
        return [(at, at + len(hidden), "SECRET")] if at >= 0 else []

    return Predecessors(text, hide)


@given(PROMPTS, PROMPTS)
def test_what_two_prompts_have_in_common(one: list[int], other: list[int]) -> None:
    found = common(np.asarray(one, np.int32), np.asarray(other, np.int32))
    assert one[:found] == other[:found]
    assert found == min(len(one), len(other)) or one[found] != other[found]


@given(st.integers(LEAST_COMMON, 50), st.integers(1, 60), st.integers(1, 60))
def test_the_place_both_texts_and_what_is_computed_again(same: int, left: int, right: int) -> None:
    look = looking()
    first, second = "s" * same + "a" * left, "s" * same + "b" * right
    assert look.follow("t", ids(first), COST) is None
    again = min(left, right)
    assert look.follow("t", ids(second), COST) == {
        "left_at_token": same,
        "stood": ("a" * left)[:SHOWN],
        "stands": ("b" * right)[:SHOWN],
        "tokens_behind": again,
        "ms": pytest.approx(again, abs=1e-3),
    }
    assert look.follow("t", ids(second + "more"), COST) is None  # it goes on from it
    assert look.follow("other", ids(first), COST) is None


@pytest.mark.parametrize("shift", range(-6, SHOWN + 2))
def test_what_must_not_be_shown_is_not_wherever_it_lies(shift: int) -> None:
    look = looking("4111-1111")
    same = "s" * 40
    secret = same + " " * max(shift, 0) + "4111-1111"[max(-shift, 0) :] + " and more of it"
    if shift < 0:  # it begins before the place at which they part
        same = same + "4111-1111"[:-shift]
        secret = same + "4111-1111"[-shift:] + " and more of it"
    look.follow("t", ids(same + "x" * 30), None)
    told = look.follow("t", ids(secret), None)
    assert told
    assert not set("14") & set(told["stands"])
    assert told["ms"] is None


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    look = looking()
    first = "f" * 20 + "a" * 20
    look.follow("t", ids(first), None)
    for number in range(MOST_PROMPTS):
        look.follow("t", ids(f"{number}" * 40), None)
    assert look.follow("t", ids("f" * 20 + "b" * 20), None) is None
    for number in range(300):
        look.follow(f"t{number}", ids("x"), None)
    assert len(look._prompts) <= 256
    assert look._held == sum(len(one) for each in look._prompts.values() for one in each)


@pytest.fixture(scope="module")
def caring(tiny_model: Path) -> Iterator[str]:
    with serving(tiny_model, "--kv-cache-memory", "4MiB", "--prefix-care") as (url, _):
        yield url


def asked(url: str, words: str, tenant: str) -> str:
    body = json.dumps({"model": "tiny", "prompt": words, "max_tokens": 2}).encode()
    headers = {"content-type": "application/json", "x-weighbridge-tenant": tenant}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers)) as answer:
        return str(answer.headers["x-weighbridge-ticket"])


def ticket(url: str, *words: str) -> Any:
    command = [sys.executable, "-m", "weighbridge", "ticket", *words, "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_ticket_says_where_a_prompt_left_the_one_before_it(caring: str) -> None:
    rules = "be brief and weigh all " * 12
    first = asked(caring, rules + "on monday the load was heavy " * 3, "a")
    moved = asked(caring, rules + "by friday the load was heavy " * 3, "a")
    other = asked(caring, rules + "at sunday the load was heavy " * 3, "b")
    told = json.loads(ticket(caring, moved, "--prefix", "--json"))["prefix"]
    assert told["tokens_behind"] > 0
    assert told["left_at_token"] >= LEAST_COMMON
    assert told["stood"] != told["stands"]
    assert f"at token {told['left_at_token']}" in ticket(caring, moved, "--prefix")
    for name in (first, other):
        assert json.loads(ticket(caring, name, "--prefix", "--json"))["prefix"] is None
    assert "nothing is known" in ticket(caring, other, "--prefix")


CONFIG = """\
models: {{tiny: {{replicas: [{{url: '{url}', dialect: weighbridge}}]}}}}
routes:
  auto: {{edge: {{model: tiny}}, cloud: {{url: 'http://127.0.0.1:9', model: far}}, cascade: {{enabled: false}}}}
"""


@pytest.mark.parametrize("model", ["tiny", "auto"])
def test_a_gateway_and_a_route_have_it_from_the_replica(caring: str, model: str) -> None:
    async def scenario() -> Any:
        async with fleet(config=CONFIG.format(url=caring)) as front:
            for day in ("monday", "sunday"):
                words = f"be brief and weigh all {model} " * 12 + f"on {day} the load was heavy"
                said = {"messages": [{"role": "user", "content": words}], "model": model, "max_tokens": 2}
                wish = {"weighbridge": {"placement": "only_edge", "tenant": f"{model}-c"}}
                async with front.post(**said, **wish) as answer:
                    assert answer.status == 200, await answer.text()
                    name = answer.headers["x-weighbridge-ticket"]
                    await answer.read()
            async with front.client.get(f"{front.url}/v1/tickets/{name}") as answer:
                return (await answer.json())["prefix"]

    told = asyncio.run(scenario())
    assert told["stood"] != told["stands"]
    assert told["tokens_behind"] > 0


@given(st.text(max_size=60) | st.dictionaries(st.text(max_size=3), st.integers()).map(json.dumps))
def test_what_is_no_note_of_ours_is_none(value: str) -> None:
    found = prefix.read(value)
    assert found is None or prefix.read(prefix.written(found).decode()) == found


def test_a_note_is_read_as_it_was_written() -> None:
    note = {"left_at_token": 7, "stood": "größer", "stands": "\n[EMAIL]", "tokens_behind": 3, "ms": None}
    assert prefix.read(prefix.written(note).decode("ascii")) == note
    assert prefix.written({**note, "stood": "x" * 5000}) == b""
