"""Models that are loaded on demand, by real processes behind a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.fleet.backends import until
from tests.fleet.on_demand.house import house
from weighbridge.wire import answer as wire_answer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: A token takes so long that an answer of 60 of them is under way while a test does something else.
SLOW = ("--gap", "0.02")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_models_are_loaded_when_asked_for_and_make_room_only_when_their_work_is_done() -> None:
    async with house(["a", "b"], 1, options={"a": SLOW}) as front:
        assert await front.states() == {"a": "unloaded", "b": "unloaded"}
        there = front.gateway.pools["b"].on_demand
        assert there is not None
        assert there.expected_wait_s > 0.0
        async with front.client.get(front.url + "/health") as health:
            assert health.status == 200, "it takes requests for all of them"
        long = asyncio.create_task(front.ask("a", 60))
        await until(lambda: front.residents.occupancy.model("a").inside)
        first = front.pid("a")
        status, answer = await front.ask("b")
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        assert long.done(), "the answer of the other model was let end"
        assert (await long)[1]["usage"]["completion_tokens"] == 60
        assert not is_there(first), "its memory is free again"
        assert there.expected_wait_s == 0.0
        (waited,) = [one for one in await front.latest_decisions() if one.startswith("waited")]
        assert "for b to be loaded, which took" in waited
        assert waited.endswith("a made room for it")
        assert await front.states() == {"a": "unloaded", "b": "loaded"}
        shown = (await front.get("/api/ps"))["models"]
        assert [(one["name"], one["size"]) for one in shown] == [("b", 1)]
        second = front.pid("b")
    assert not is_there(second), "all processes end with the gateway"


async def test_a_model_that_is_killed_is_noticed_and_loaded_again_for_the_next_request() -> None:
    async with house(["a", "b"], 2) as front:
        for model in ("a", "b"):
            assert (await front.ask(model))[0] == 200
        occupancy = front.residents.occupancy
        occupancy.model("a").loaded_at -= 60.0  # as if it had lived for a minute
        os.kill(front.pid("a"), signal.SIGKILL)
        await until(lambda: occupancy.model("a").presence == "unloaded")
        assert await front.states() == {"a": "unloaded", "b": "loaded"}
        told = await front.get("/v1/models/a")
        assert "SIGKILL" in told["status"]["reason"]
        assert (await front.ask("a"))[0] == 200
        assert occupancy.model("b").loads == 1, "the other one was left alone"


async def test_what_ran_in_a_model_that_dies_is_answered_by_the_next_life_of_it() -> None:
    async with house(["a"], 1, options={"a": SLOW}) as front:
        running = [asyncio.create_task(front.ask("a", 40)) for _ in range(3)]
        occupancy = front.residents.occupancy
        await until(lambda: len(occupancy.model("a").inside) == 3)
        await until(lambda: sum(one.state.requests for one in front.gateway.pools["a"].members.values()) == 3)
        occupancy.model("a").loaded_at -= 60.0
        os.kill(front.pid("a"), signal.SIGKILL)
        answers = await asyncio.gather(*running)
        assert [status for status, _ in answers] == [200] * 3
        assert occupancy.model("a").loads == 2


async def test_a_load_that_fails_is_told_at_once_with_the_reason_and_does_not_harm_others() -> None:
    async with house(["good", "bad"], 2, options={"bad": ("--fails",)}) as front:
        assert (await front.ask("good"))[0] == 200
        for _ in range(2):  # the second one does not wait for another try
            status, answer = await front.ask("bad")
            assert status == 503
            assert answer["error"]["code"] == "model_load_failed"
            assert "ended with code 2" in answer["error"]["message"]
            assert "the file is no model" in answer["error"]["message"], "in the words of its own process"
            assert float(answer["retry_after"]) >= 1.0
        told = (await front.get("/v1/models/bad"))["status"]
        assert (told["value"], told["failed"]) == ("failed", True)
        assert (await front.ask("good"))[0] == 200


async def test_a_tenant_is_told_that_a_load_failed_and_the_operator_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = "admin_key: op\ntenants: {alice: {key: a}}\n"
    alice, operator = {"Authorization": "Bearer a"}, {"Authorization": "Bearer op"}
    inside = "the file is no model"
    async with house(["bad"], 1, options={"bad": ("--fails",)}, more=keys) as front:
        told = []
        asked = {"model": "bad", "max_tokens": 1, "prompt": "x"}
        ollama = {"model": "bad", "prompt": "x", "stream": False}
        for path, body in (("/v1/completions", asked), ("/api/generate", ollama)):
            async with front.client.post(front.url + path, json=body, headers=alice) as answer:
                assert answer.status == 503
                told.append(await answer.text())
                ticket = answer.headers.get("x-weighbridge-ticket", "")
            pages = [
                "/v1/models",
                "/v1/models/bad",
                "/v1/tickets",
                *([f"/v1/tickets/{ticket}"] if ticket else []),
            ]
            for page in pages:
                async with front.client.get(front.url + page, headers=alice) as answer:
                    assert answer.status == 200
                    told.append(await answer.text())
        assert not [text for text in told if inside in text or "code 2" in text]
        (failure,) = set(re.findall(r"as failure (\w{8})", told[0]))
        assert failure in json.loads(told[2])["status"]["failure"]
        assert [line for line in caplog.messages if inside in line and failure in line]
        move = {"model": "bad"}
        async with front.client.post(front.url + "/v1/models/load", json=move, headers=operator) as answer:
            assert inside in (await answer.json())["error"]["message"]
        async with front.client.get(front.url + "/v1/tickets", headers=operator) as answer:
            assert inside in (await answer.json())["data"][0]["error"]


async def test_operators_load_and_unload_and_who_streams_hears_that_we_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire_answer, "KEEP_ALIVE_SECONDS", 0.03)  # no process starts as soon as that
    async with house(["a", "b"], 1, keep=["a"], options={"a": SLOW}) as front:
        await until(lambda: front.gateway.ready)  # a is kept
        assert await front.states() == {"a": "loaded", "b": "unloaded"}
        status, answer = await front.ask("b", weighbridge={"deadline_ms": 100})
        assert (status, answer["error"]["code"]) == (504, "deadline_missed")
        running = asyncio.create_task(front.ask("a", 30))
        await until(lambda: front.residents.occupancy.model("a").inside)
        async with front.client.post(
            front.url + "/v1/models/unload", json={"model": "a", "wait_s": 60}
        ) as answered:
            told = await answered.json()
        assert (told["success"], told["status"]["value"]) == (True, "unloaded")
        assert running.done(), "what ran in it was let end"
        assert (await running)[0] == 200
        async with front.post("/v1/completions", model="b", max_tokens=3, stream=True) as stream:
            body = await stream.read()
        assert body.startswith(b": keep-alive"), "it waited for its model"
        assert body.endswith(b"data: [DONE]\n\n")
        async with front.client.post(front.url + "/v1/models/load", json={"model": "nobody"}) as answered:
            assert answered.status == 404
        async with front.client.post(
            front.url + "/v1/models/load", json={"model": "a", "wait_s": 60}
        ) as answered:
            assert (await answered.json())["status"]["value"] == "loaded"
        assert await front.states() == {"a": "loaded", "b": "unloaded"}


async def test_ollamas_keep_alive_decides_how_long_a_model_stays() -> None:
    async with house(["a"], 1) as front:
        chat = {"model": "a", "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 2}}
        async with front.client.post(front.url + "/api/chat", json={**chat, "keep_alive": "10m"}) as answer:
            await answer.read()
            assert answer.status == 200
        status = (await front.get("/v1/models/a"))["status"]
        assert 590 < status["expires_in_s"] <= 600
        async with front.client.post(front.url + "/api/chat", json={**chat, "keep_alive": 0}) as answer:
            await answer.read()
        await until(lambda: front.residents.occupancy.model("a").presence == "unloaded")
        for word, state in (("load", "loaded"), ("unload", "unloaded")):
            empty = {"model": "a", "keep_alive": 0 if word == "unload" else "1m"}
            async with front.client.post(front.url + "/api/generate", json=empty) as answer:
                assert (await answer.json())["done_reason"] == word
            await until(lambda state=state: front.residents.occupancy.model("a").presence == state)
        async with front.client.post(front.url + "/api/chat", json={**chat, "keep_alive": "soon"}) as answer:
            assert answer.status == 400
