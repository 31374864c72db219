"""What one tenant sent is nothing that another can find out, at every door that asks for keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.doors.client import exchange, request
from tests.doors.doors import DOORS, GATEWAY, KEYS, SINGLE, Door
from tests.doors.table import CHAT, COMPLETIONS, EMBEDDINGS

Doors = dict[bool, dict[str, Door]]


def sent(door: Door, path: str, key: str | None, **body: Any) -> tuple[int, str]:
    """The cached tokens that an answer tells, and its ticket's id."""
    headers: list[Any] = [("Authorization", f"Bearer {key}")] if key else []
    data = json.dumps({"model": door.model, **body}).encode()
    host = f"127.0.0.1:{door.port}"
    reply = exchange(door.port, request("POST", path, headers, data, host))
    assert reply.status == 200, reply.body
    told = reply.events if body.get("stream") else [reply.json]
    usage = next(one["usage"] for one in told if isinstance(one, dict) and one.get("usage"))
    return usage["prompt_tokens_details"]["cached_tokens"], reply.header("x-weighbridge-ticket") or ""


def bodies(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The text in every kind of request. Routes know chats only."""
    messages = [{"role": "user", "content": text}]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return [
        (CHAT, {"messages": messages, "max_tokens": 1}),
        (CHAT, {"messages": messages, "max_tokens": 1, **streamed}),
        (COMPLETIONS, {"prompt": text, "max_tokens": 1}),
        (EMBEDDINGS, {"input": text}),
    ]


@pytest.mark.parametrize("salt", [{}, {"cache_salt": "guessed"}], ids=["plain", "salted"])
@pytest.mark.parametrize("name", DOORS)
def test_cached_tokens_tell_nothing_of_another_tenants_text(
    name: str, salt: dict[str, str], doors: Doors
) -> None:
    door, tells = doors[True][name], name in (SINGLE, GATEWAY)  # a route's edge is no server that takes salts
    for kind in range(4 if tells else 2):
        begins = f"{len(salt)}{kind} {name}: "
        path, body = bodies(begins + "salt and pepper " * 40)[kind]
        own = [bodies(begins + others * 40)[kind][1] for others in ("gold and silver ", "iron and copper ")]
        sent(door, path, KEYS["alice"], **body, **salt)
        again, ticket = sent(door, path, KEYS["alice"], **body, **salt)
        assert again == door.ticket(ticket, KEYS["alice"])["cached_tokens"]
        assert again >= 32 or not tells, path
        sent(door, path, KEYS["bob"], **own[0], **salt)
        beginning, _ = sent(door, path, KEYS["bob"], **own[1], **salt)  # which he has sent himself
        cached, ticket = sent(door, path, KEYS["bob"], **body, **salt)
        assert cached == door.ticket(ticket, KEYS["bob"])["cached_tokens"] == beginning < 32, path
        reasons = " ".join(door.ticket(ticket, KEYS["bob"])["decisions"])
        assert "prompt tokens to compute" not in reasons, (
            reasons
        )  # said where a part is believed to be cached


@pytest.mark.parametrize("name", DOORS)
def test_a_prompts_name_is_not_the_same_for_two_tenants(name: str, doors: Doors) -> None:
    door = doors[True][name]
    path, body = bodies("whose text is this")[0]

    def named(tenant: str) -> str:
        _, ticket = sent(door, path, KEYS[tenant], **body)
        return str(door.ticket(ticket, KEYS[tenant])["prompt_hash"])

    alices, bobs, again = named("alice"), named("bob"), named("alice")
    assert alices == again
    assert alices != bobs


@pytest.mark.parametrize("name", [SINGLE, GATEWAY])
def test_without_keys_prompts_are_shared_but_under_a_salt_of_ones_own(name: str, doors: Doors) -> None:
    door = doors[False][name]
    path, body = bodies(f"a system prompt that everybody has at {name} " + "and more of it " * 40)[0]
    sent(door, path, None, **body)
    assert sent(door, path, None, **body, weighbridge={"tenant": "somebody"})[0] >= 32
    assert sent(door, path, None, **body, cache_salt=f"of {name}")[0] == 0
    assert sent(door, path, None, **body, cache_salt=f"of {name}")[0] >= 32


@pytest.mark.parametrize("name", DOORS)
def test_no_tenant_sees_tickets_of_another(name: str, doors: Doors) -> None:
    door = doors[True][name]
    path, body = bodies("a ticket of my own")[0]
    _, ticket = sent(door, path, KEYS["alice"], **body)
    assert door.ticket(ticket, KEYS["alice"])["tenant"] == "alice"
    assert door.get(f"/v1/tickets/{ticket}", KEYS["bob"]).status == 404
    assert door.get(f"/v1/tickets/{ticket}").status == 401
    for tenant in ("alice", "bob"):
        listed = door.get("/v1/tickets?limit=1000", KEYS[tenant]).json["data"]
        assert {one["tenant"] for one in listed} <= {tenant}


@pytest.mark.parametrize("path", ["/metrics", "/v1/load"])
@pytest.mark.parametrize("name", DOORS)
def test_figures_are_for_this_machine_and_for_those_who_may_see_them(
    name: str, path: str, doors: Doors
) -> None:
    afar: list[Any] = [
        ("X-Forwarded-For", "203.0.113.9")
    ]  # whoever comes through a proxy is not on this machine

    def status(keyed: bool, headers: list[Any]) -> int:
        port = doors[keyed][name].port
        return exchange(port, request("GET", path, headers, None, f"127.0.0.1:{port}")).status

    assert status(True, []) == 200
    assert status(True, afar) == 401
    assert status(True, [*afar, ("Authorization", "Bearer wrong")]) == 401
    assert status(True, [*afar, ("Authorization", f"Bearer {KEYS['eyes']}")]) == 200
    others = 403 if path == "/metrics" else 200
    assert status(True, [*afar, ("Authorization", f"Bearer {KEYS['bob']}")]) == others
    assert status(False, afar) == 200


@pytest.mark.parametrize("name", DOORS)
def test_the_console_is_the_same_page_to_everybody(name: str, doors: Doors) -> None:
    """It asks for what it shows with its reader's key; by itself it holds nothing of this server."""
    door, bare = doors[True][name], doors[False][name]
    afar = [("X-Forwarded-For", "203.0.113.9")]
    replies = [
        exchange(one.port, request("GET", "/", headers, None, f"127.0.0.1:{one.port}"))
        for one, headers in ((door, []), (door, afar), (bare, afar))
    ]
    assert {reply.status for reply in replies} == {200}
    assert len({bytes(reply.body) for reply in replies}) == 1


@pytest.mark.parametrize("name", DOORS)
def test_a_tenants_key_shows_nothing_of_others(name: str, doors: Doors) -> None:
    """Names, addresses, money: whatever /v1/load says to this machine and not to a tenant is of all of them."""
    door = doors[True][name]
    path, body = bodies("whose figures are these")[0]
    sent(door, path, KEYS["alice"], **body)
    afar: list[Any] = [("X-Forwarded-For", "203.0.113.9"), ("Authorization", f"Bearer {KEYS['bob']}")]

    def page(path: str) -> str:
        reply = exchange(door.port, request("GET", path, afar, None, f"127.0.0.1:{door.port}"))
        return bytes(reply.body).decode()

    told = json.loads(page("/v1/load"))
    assert {"queued_requests", "running_requests"} <= told.keys()
    assert all(
        isinstance(value, int | bool) or name in ("step_cost", "abilities", "kv_dtype")
        for name, value in told.items()
        if value
    ), told
    assert "alice" not in page("/metrics")
    assert name == SINGLE or "alice" in bytes(door.get("/metrics").body).decode()


@pytest.mark.parametrize("name", DOORS)
def test_a_gateway_sees_the_tickets_of_whom_it_speaks_for(name: str, doors: Doors) -> None:
    door = doors[True][name]
    path, body = bodies("a ticket through a gateway")[0]
    _, ticket = sent(door, path, KEYS["front"], **body, weighbridge={"tenant": "ann"})
    ann: list[Any] = [("x-weighbridge-tenant", "ann")]

    def status(key: str, headers: list[Any]) -> int:
        told = [*headers, ("Authorization", f"Bearer {key}")]
        return exchange(
            door.port, request("GET", f"/v1/tickets/{ticket}", told, None, f"127.0.0.1:{door.port}")
        ).status

    assert status(KEYS["front"], ann) == 200
    assert status(KEYS["front"], []) == 404
    assert status(KEYS["bob"], ann) == 404
