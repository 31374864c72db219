"""What Anthropic's clients are told of the prefix cache: its own figures, at every door."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.doors.client import exchange, request
from tests.doors.doors import DOORS, Door

BLOCK = 32


def usage_of(door: Door, text: str, stream: bool) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}]
    asked = {"model": door.model, "max_tokens": 2, "messages": turns, "stream": stream}
    body = json.dumps({**asked, "weighbridge": {"placement": "only_edge"}}).encode()
    host = f"127.0.0.1:{door.port}"
    reply = exchange(door.port, request("POST", "/v1/messages", [], body, host))
    assert reply.status == 200, reply.body
    told: dict[str, Any] = reply.events[-2]["usage"] if stream else reply.json["usage"]
    return told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DOORS)
def test_a_prompt_is_written_once_and_read_again(
    name: str, stream: bool, doors: dict[bool, dict[str, Door]]
) -> None:
    door = doors[False][name]
    text = f"{name} {stream} " + "how heavy is it " * 20
    first, again = usage_of(door, text, stream), usage_of(door, text, stream)
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    fresh, written, read = (first[one] for one in names)
    prompt = fresh + written + read
    held = prompt // BLOCK * BLOCK
    assert held > 2 * BLOCK
    assert written + read == held
    assert written >= held - BLOCK  # the template's beginning may be of another test
    found = prompt - 1  # the last one is computed again
    written = max(held - found, 0)
    assert [again[one] for one in names] == [1 - written, written, found]
