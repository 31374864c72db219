"""Rules for prompts at a gateway: the same in every protocol, by tenant, and told on the ticket."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet.backends import Backend, Front, fleet

SYSTEM = "You weigh.\nToday's date: 2026-11-30\nCurrent time: {time}\nBe brief."
PARAMETERS = {"type": "object", "properties": {}}


def chat(time: str) -> tuple[str, dict[str, Any]]:
    turns = [{"role": "system", "content": SYSTEM.format(time=time)}, {"role": "user", "content": "Go."}]
    tools = [{"type": "function", "function": {"name": one, "parameters": PARAMETERS}} for one in "ba"]
    return "/v1/chat/completions", {"messages": turns, "tools": tools}


def responses(time: str) -> tuple[str, dict[str, Any]]:
    tools = [{"type": "function", "name": one, "parameters": PARAMETERS} for one in "ba"]
    return "/v1/responses", {"instructions": SYSTEM.format(time=time), "input": "Go.", "tools": tools}


def messages(time: str) -> tuple[str, dict[str, Any]]:
    tools = [{"name": one, "input_schema": PARAMETERS} for one in "ba"]
    turns = [{"role": "user", "content": "Go."}]
    return "/v1/messages", {
        "system": SYSTEM.format(time=time),
        "messages": turns,
        "max_tokens": 9,
        "tools": tools,
    }


def ollama(time: str) -> tuple[str, dict[str, Any]]:
    _, asked = chat(time)
    return "/api/chat", {**asked, "stream": False}


PROTOCOLS = {"chat": chat, "responses": responses, "messages": messages, "ollama": ollama}


async def asked(front: Front, path: str, fields: dict[str, Any], **headers: str) -> dict[str, Any]:
    """The ticket of a request that was answered."""
    async with front.client.post(front.url + path, json={"model": "m", **fields}, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        name = answer.headers["x-weighbridge-ticket"]
        await answer.read()
    await front.idle()
    ticket: dict[str, Any] = await front.get(f"/v1/tickets/{name}", headers)
    return ticket


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_prompt_is_made_steady_in_every_protocol(protocol: str) -> None:
    backend = Backend(usage={"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 90}})
    async with fleet(backend, top="prompt_rules: [dates+tools]") as front:
        tickets = [await asked(front, *PROTOCOLS[protocol](time)) for time in ("12:31", "12:32")]
    first, second = (call["messages"] for call in backend.calls)
    assert first[0]["content"] == second[0]["content"] == "You weigh.\nBe brief.\nToday's date: 2026-11-30"
    assert [one[-1]["content"].splitlines()[-1] for one in (first, second)] == [
        "Current time: 12:31",
        "Current time: 12:32",
    ]
    assert [tool["function"]["name"] for tool in backend.calls[0]["tools"]] == ["a", "b"]
    told = [one["prompt_rules"] for one in tickets]
    assert [one["rule"] for one in told[0]["touched"]] == ["dates", "dates", "tools"]
    assert told[0]["left_at"] is None
    assert told[0]["tokens_saved"] == 0
    assert 0 < told[1]["left_at"] < 0.5
    assert told[1]["tokens_saved"] == 90 - round(100 * told[1]["left_at"])
    assert any(one.startswith("prompt rules: dates") for one in tickets[0]["decisions"])


async def test_nothing_is_done_where_nobody_asked_for_it() -> None:
    path, fields = chat("12:31")
    tenants = "tenants: {alice: {key: key-of-alice}, bob: {key: key-of-bob}}\nprompt_rules: [alice=dates]"
    backend = Backend()
    async with fleet(backend, top=tenants) as front:
        for who in ("alice", "bob"):
            ticket = await asked(front, path, fields, authorization=f"Bearer key-of-{who}")
            assert (ticket["prompt_rules"] is not None) == (who == "alice")
    alices, bobs = (call["messages"] for call in backend.calls)
    assert bobs == fields["messages"]
    assert alices != bobs


async def test_what_runs_in_the_background_is_told_of_too() -> None:
    path, fields = responses("12:31")
    async with fleet(Backend(), top="prompt_rules: [dates]") as front:
        async with front.client.post(
            front.url + path, json={"model": "m", "background": True, **fields}
        ) as answer:
            assert answer.status == 200, await answer.text()
        await front.idle()
        [ticket] = (await front.get("/v1/tickets"))["data"]
    assert ticket["prompt_rules"]["touched"]
