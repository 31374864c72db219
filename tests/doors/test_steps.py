"""What takes more than one request: tickets of others, a connection used again, clients that go away."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.doors.client import Reply, connect, exchange, read_reply, request
from tests.doors.doors import DOORS, KEYS, Door
from tests.doors.table import CHAT, MODEL, at_rest, chat

Doors = dict[bool, dict[str, Door]]

every_door = pytest.mark.parametrize("name", DOORS)


def sent(door: Door, body: Any, key: str | None = None, *more: tuple[str, str], close: bool = True) -> bytes:
    """The bytes of a chat for this door."""
    headers: list[Any] = [("Content-Type", "application/json"), *more]
    if key is not None:
        headers.append(("Authorization", f"Bearer {KEYS[key]}"))
    if not close:
        headers.append(("Connection", "keep-alive"))
    data = json.dumps(body).replace(MODEL, door.model).encode()
    return request("POST", CHAT, headers, data, f"127.0.0.1:{door.port}")


def ticket_in(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return reply.header("x-weighbridge-ticket") or ""


@every_door
def test_a_ticket_is_shown_to_its_tenant_alone(name: str, doors: Doors) -> None:
    door = doors[True][name]
    ticket = ticket_in(exchange(door.port, sent(door, chat(), "alice")))
    path = f"/v1/tickets/{ticket}"
    assert door.get(path, KEYS["alice"]).json["tenant"] == "alice"
    other, absent = door.get(path, KEYS["bob"]), door.get("/v1/tickets/" + "0" * 32, KEYS["bob"])
    assert (
        (other.status, other.error["code"])
        == (absent.status, absent.error["code"])
        == (404, "ticket_not_found")
    )
    assert ticket in {one["id"] for one in door.get("/v1/tickets", KEYS["alice"]).json["data"]}
    assert {one["tenant"] for one in door.get("/v1/tickets", KEYS["bob"]).json["data"]} <= {"bob"}


@every_door
def test_a_list_is_full_of_ones_own_tickets_however_busy_the_others_are(name: str, doors: Doors) -> None:
    door = doors[True][name]
    mine = ticket_in(exchange(door.port, sent(door, chat(), "bob")))
    for _ in range(3):
        exchange(door.port, sent(door, chat(), "alice"))
    assert [one["id"] for one in door.get("/v1/tickets?limit=1", KEYS["bob"]).json["data"]] == [mine]


@every_door
def test_a_ticket_of_somebody_else_is_not_to_be_had(name: str, doors: Doors) -> None:
    door = doors[True][name]
    ticket = ticket_in(exchange(door.port, sent(door, chat(), "alice")))
    stolen = ticket_in(exchange(door.port, sent(door, chat(), "bob", ("x-weighbridge-ticket", ticket))))
    assert stolen != ticket
    assert door.ticket(ticket, KEYS["alice"])["tenant"] == "alice"


@every_door
def test_stalls_are_among_the_figures(name: str, doors: Doors) -> None:
    door = doors[False][name]
    assert exchange(door.port, sent(door, chat())).status == 200
    threads = ("loop", "engine") if name == "single" else ("loop",)
    counts = [f'weighbridge_loop_stall_seconds_count{{thread="{thread}"}} ' for thread in threads]
    deadline = time.monotonic() + 30.0
    while True:  # the loop's first beat may still be to come
        page = door.get("/metrics").body.decode()
        found = [line for line in page.splitlines() if line.startswith(tuple(counts))]
        if len(found) == len(counts) and not any(line.endswith(" 0.0") for line in found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


REFUSED = {
    "a wrong field": (chat(n=0), 400),
    "an unknown model": (chat(model="nobody"), 404),
    "half a body": ("half", 400),
    "a body over the limit": (chat(padding="x" * (9 << 20)), 413),
    "a good one": (chat(), 200),
    "a stream": (chat(stream=True), 200),
}


@every_door
@pytest.mark.parametrize("what", REFUSED)
def test_a_connection_goes_on_behind_every_answer(what: str, name: str, doors: Doors) -> None:
    door, (body, status) = doors[False][name], REFUSED[what]
    first = sent(door, body, close=False)
    if body == "half":
        first = request("POST", CHAT, [("Connection", "keep-alive")], b'{"model"', f"127.0.0.1:{door.port}")
    with connect(door.port) as connection:
        connection.sendall(first)
        assert read_reply(connection)[0] == status
        connection.sendall(sent(door, chat()))
        assert read_reply(connection)[0] == 200


@every_door
def test_two_requests_in_one_write_have_two_answers_in_order(name: str, doors: Doors) -> None:
    door = doors[False][name]
    with connect(door.port) as connection:
        connection.sendall(sent(door, chat(model="nobody"), close=False) + sent(door, chat()))
        stream = connection.makefile("rb")
        data = stream.read()
    assert data.index(b"HTTP/1.1 404 ") < data.index(b"HTTP/1.1 200 ")


@every_door
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_nothing_behind(stream: bool, name: str, doors: Doors) -> None:
    door = doors[False][name]
    ticket = f"{'a' if stream else 'b'}{DOORS.index(name)}".ljust(32, "0")
    body = chat(
        stream=stream,
        max_tokens=900,
        weighbridge={"placement": "only_edge"},
        stop_token_ids=[],
        ignore_eos=True,
    )
    with connect(door.port) as connection:
        connection.sendall(sent(door, body, None, ("x-weighbridge-ticket", ticket)))
        if stream:
            connection.recv(1)
        else:
            time.sleep(0.05)
    assert at_rest(door) == {}
    assert door.ticket(ticket).get("finish_reason") == "abort"
