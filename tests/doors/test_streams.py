"""Streams that survive their clients: cut anywhere and picked up again, at every door, in every protocol."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from tests.doors.doors import DOORS, KEYS, Door

Doors = dict[bool, dict[str, Door]]

every_door = pytest.mark.parametrize("name", DOORS)
RESUME = ("x-weighbridge-resume", "true")
TALK: Any = {"messages": [{"role": "user", "content": "What does it weigh?"}]}

#: For each way to stream: its path, and what is asked. `ignore_eos` makes it as long as it says, where that is known.
ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**TALK, "max_tokens": 40, "ignore_eos": True}),
    "completion": ("/v1/completions", {"prompt": "a b", "max_tokens": 40, "ignore_eos": True}),
    "responses": ("/v1/responses", {"input": "a b", "max_output_tokens": 40, "ignore_eos": True}),
    "messages": ("/v1/messages", {**TALK, "max_tokens": 40}),
    "ollama": ("/api/chat", {**TALK, "options": {"num_predict": 40}}),
}


class Cut:
    """One request, whose connection can be cut where one likes."""

    def __init__(
        self, port: int, method: str, path: str, body: bytes, headers: list[tuple[str, str]]
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
        head.append(f"Content-Length: {len(body)}")
        head += [f"{name}: {value}" for name, value in headers]
        self._socket.sendall("\r\n".join([*head, "", ""]).encode() + body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._some()
        top, self._raw = data.split(b"\r\n\r\n", 1)
        lines = top.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}

    def _some(self) -> bytes:
        data = self._socket.recv(4096)
        if not data:
            raise EOFError
        return data

    def read(self, most: int | None = None) -> bytes:
        """Its first bytes, or all of them."""
        while most is None or len(self.body) < most:
            try:
                self._raw += self._some()
            except EOFError:
                break
        return self.body[:most]

    @property
    def body(self) -> bytes:
        """What has come, without the lengths of its chunks."""
        if self.headers.get("transfer-encoding") != "chunked":
            return self._raw
        parts, left = [], self._raw
        while b"\r\n" in left:
            size, left = left.split(b"\r\n", 1)
            parts.append(left[: int(size, 16)])
            left = left[int(size, 16) + 2 :]
        return b"".join(parts)

    def drop(self) -> None:
        """End the connection in the middle, as a network does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def opened(door: Door, kind: str, key: str | None, *more: tuple[str, str], **fields: Any) -> Cut:
    path, body = ASKS[kind]
    headers = [("Content-Type", "application/json"), *more]
    headers += [("Authorization", f"Bearer {key}")] if key else []
    return Cut(
        door.port,
        "POST",
        path,
        json.dumps({"model": door.model, "stream": True, **body, **fields}).encode(),
        headers,
    )


def picked_up(door: Door, name: str, after: int | None, key: str | None) -> Cut:
    headers = [("Authorization", f"Bearer {key}")] if key else []
    headers += [("Last-Event-ID", str(after))] if after is not None else []
    return Cut(door.port, "GET", f"/v1/streams/{name}", b"", headers)


def whole(data: bytes, kind: str) -> tuple[bytes, int]:
    """The events that came whole, and how many; an SSE reader has the number from the stream itself."""
    gap = b"\n" if kind == "ollama" else b"\n\n"
    data = data[: data.rfind(gap) + len(gap)] if gap in data else b""
    if kind == "ollama":
        return data, data.count(b"\n")
    numbers = re.findall(rb"^id: (\d+)$", data, re.MULTILINE)
    return data, int(numbers[-1]) if numbers else 0


def without_pulses(data: bytes) -> bytes:
    return data.replace(b": keep-alive\n\n", b"")


def survives(door: Door, kind: str, key: str | None, seed: int) -> None:
    """Cut a stream at random points until it has been read to its end, and compare with all of it."""
    chance = random.Random(seed)
    cut = opened(door, kind, key, RESUME, **({} if kind == "ollama" else {"temperature": 1}))
    assert cut.status == 200
    name, read, number = cut.headers["x-weighbridge-stream"], b"", 0
    while True:
        part = cut.read(chance.choice([0, 1, 200, 1000, chance.randrange(1, 12_000), None]))
        events, last = whole(part, kind)
        read, number = (
            read + events,
            last if kind != "ollama" and last else number + last * (kind == "ollama"),
        )
        cut.drop()
        time.sleep(chance.choice([0.0, 0.0, 0.02]))
        cut = picked_up(door, name, number, key)
        assert cut.status == 200, cut.read()
        if chance.random() < 0.3:
            read += cut.read()
            break
    full = picked_up(door, name, None, key).read()
    assert without_pulses(read) == without_pulses(full)
    if kind != "ollama":
        numbers = [int(one) for one in re.findall(rb"^id: (\d+)$", full, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))


@every_door
@pytest.mark.parametrize("kind", ASKS)
def test_a_stream_cut_anywhere_is_read_to_its_end(name: str, kind: str, doors: Doors) -> None:
    if kind == "completion" and name in ("route", "routes"):
        return  # routes answer chats
    for keyed in (False, True):
        key = KEYS["alice"] if keyed else None
        for seed in range(2):
            survives(doors[keyed][name], kind, key, seed)


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_five_hundred_streams_are_cut_at_random_points_and_picked_up(doors: Doors) -> None:
    def one(seed: int) -> None:
        chance = random.Random(seed)
        door = doors[seed % 2 == 0][chance.choice(["single", "gateway", "route"])]
        kind = chance.choice(["chat", "responses", "messages", "ollama"])
        survives(door, kind, KEYS["alice"] if seed % 2 == 0 else None, seed)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(one, range(500)))) == 500


@every_door
def test_only_whoever_opened_a_stream_picks_it_up(name: str, doors: Doors) -> None:
    door = doors[True][name]
    cut = opened(door, "chat", KEYS["alice"], RESUME)
    named = cut.headers["x-weighbridge-stream"]
    assert named == cut.headers["x-weighbridge-ticket"]
    for key in (KEYS["bob"], KEYS["dave"]):
        assert picked_up(door, named, 0, key).status == 404
    assert picked_up(door, named, 0, None).status == 401
    for wrong, status in (("x", 400), (-1, 400), (10**6, 400)):
        assert picked_up(door, named, wrong, KEYS["alice"]).status == status  # type: ignore[arg-type]
    cut.read()
    assert picked_up(door, named, 1, KEYS["alice"]).read().startswith(b"id: 2\n")
    gone = Cut(
        door.port, "DELETE", f"/v1/streams/{named}", b"", [("Authorization", f"Bearer {KEYS['alice']}")]
    )
    assert gone.status == 200
    assert picked_up(door, named, 1, KEYS["alice"]).status == 404


def at_rest(door: Door, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while door.holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("name", ["single", "gateway"])
def test_without_the_wish_a_stream_ends_with_its_client_and_with_it_it_goes_on(
    name: str, doors: Doors
) -> None:
    door = doors[False][name]
    long = {"max_tokens": 900}
    plain = opened(door, "chat", None, **long)
    assert "x-weighbridge-stream" not in plain.headers
    assert b"id:" not in plain.read(2000)
    plain.drop()
    assert at_rest(door, 3.0)
    cut = opened(door, "chat", None, RESUME, **long)
    cut.read(2000)
    cut.drop()
    time.sleep(0.3)
    assert door.holds()
    rest = picked_up(door, cut.headers["x-weighbridge-stream"], 0, None).read()
    assert rest.count(b'"content":"') > 100
    assert rest.endswith(b"data: [DONE]\n\n")
    again = opened(door, "chat", None, RESUME, **long)
    named = again.headers["x-weighbridge-stream"]
    again.drop()
    assert Cut(door.port, "DELETE", f"/v1/streams/{named}", b"", []).status == 200
    assert at_rest(door, 3.0)


def test_errors_and_whole_answers_are_as_without_the_wish(doors: Doors) -> None:
    door = doors[False]["single"]
    refused = opened(door, "chat", None, RESUME, max_tokens=-1)
    assert refused.status == 400
    assert "x-weighbridge-stream" not in refused.headers
    answered = opened(door, "chat", None, RESUME, stream=False)
    assert json.loads(answered.read())["object"] == "chat.completion"
    assert "x-weighbridge-stream" not in answered.headers


def test_clients_read_numbered_streams_as_before(doors: Doors) -> None:
    door = doors[False]["single"]
    asks = OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=30)
    texts = []
    for headers in ({}, dict([RESUME])):
        made = asks.chat.completions.create(
            model=door.model, **TALK, max_tokens=20, temperature=0, stream=True, extra_headers=headers
        )
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in made if chunk.choices))
    assert texts[0] == texts[1]
