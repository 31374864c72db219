# ruff: noqa: E501 - tables read best a case to a line
"""What keeps a request: time, detectors that fail, values that are split; and that nothing of it is the loop's work."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from tests.routes.privacy.bodies import chat, redact, sent
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import Hit
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector
from weighbridge.routes.privacy.redact import Vault
from weighbridge.routes.privacy.seams import Seams

#: Texts that held the loop for seconds or minutes once, and more of their kind.
HOSTILE = {
    "a placeholder with a long tag": "[A" + "X" * 6400 + "_1]",
    "many of them": ("[A" + "X" * 50 + "_1]") * 2000,
    "beginnings of keys": "-----BEGIN PRIVATE KEY-----\n" * 20_000,
    "beginnings of tokens": "eyJ" * 30_000,
    "letters": "x" * 200_000,
    "letters and signs": "a.b-c+" * 30_000 + "@",
    "digits": "1 " * 100_000,
    "addresses": "".join(f"u{number}@example.com " for number in range(4000)),
    "escapes of escapes": "%25" * 50_000,
    "entities": "&#38;amp;" * 20_000,
    "tags": "<a " * 60_000,
    "open brackets": "[" * 100_000,
    "invisible": "\u200b" * 100_000,
    "marks": "e" + "\u0301" * 100_000,
    "Chinese": "我的手机号是" * 20_000,
    "JSON": json.dumps([{"n": number, "t": "x"} for number in range(4000)]),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_loop_does_none_of_the_work(name: str) -> None:
    """Its own CPU time from beginning to end is below 50 ms, whatever the text; the work is done or given up."""
    body = chat(HOSTILE[name])
    guard = Guard([PatternDetector(), DenyListDetector(["secret phrase"])], timeout=30.0)
    await guard.inspect(chat("warm up 123"))
    began = time.thread_time()
    inspection = await guard.inspect(body)
    redacted = await guard.redact(inspection, body)
    assert time.thread_time() - began < 0.05
    assert redacted is not None or inspection.found is None or inspection.found
    guard.close()


class Waits:
    """Looks until it is told to stop looking, a step at a time."""

    name = "waits"
    is_quick = False

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def detect(self, text: str) -> list[Hit]:
        raise AssertionError("it can be stopped")

    def detect_within(self, text: str, tick: Any) -> list[Hit]:
        try:
            while True:
                tick()
                time.sleep(0.001)
        finally:
            self.stopped.set()


async def test_what_takes_too_long_stays_and_its_thread_stops() -> None:
    waits = Waits()
    guard = Guard([waits], timeout=0.1)
    inspection = await guard.inspect(chat("hi"))
    assert inspection.found is None
    assert await guard.redact(inspection, chat("hi")) is None
    assert await asyncio.to_thread(waits.stopped.wait, 30)
    guard.close()


async def test_redaction_that_takes_too_long_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard([PatternDetector()], timeout=30.0)
    body = chat("mail ann@example.com")
    inspection = await guard.inspect(body)
    is_over = threading.Event()

    def slow(self: Vault, text: str, found: Any, kind: Any) -> str:
        is_over.wait(60)
        return text

    monkeypatch.setattr(Vault, "hide", slow)
    guard._timeout = 0.1
    assert await guard.redact(inspection, body) is None
    is_over.set()
    guard.close()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
async def test_an_address_in_pieces_of_any_size_stays(size: int) -> None:
    value = "alice.smith@example.com"
    pieces = [value[at : at + size] for at in range(0, len(value), size)]
    parts = [{"type": "text", "text": piece} for piece in pieces]
    assert await redact(chat(parts)) is None
    assert await redact(chat("hi", stop=pieces)) is None
    assert (
        await redact(chat(json.dumps({f"f{number}": piece for number, piece in enumerate(pieces)}))) is None
    )


async def test_text_and_refusal_and_denied_phrases_over_parts_stay() -> None:
    parts = [{"type": "text", "text": "to alice@exam"}, {"type": "refusal", "refusal": "ple.com please"}]
    assert await redact({"messages": [{"role": "assistant", "content": parts}]}) is None
    assert await redact(chat("hi", stop=["alice@exam", "ple.com"])) is None
    words = [{"type": "text", "text": "the project"}, {"type": "text", "text": "bluefin is late"}]
    assert await redact(chat(words), ["project bluefin"]) is None


async def test_a_word_in_the_part_before_gives_a_number_away() -> None:
    parts = [{"type": "text", "text": "My phone:"}, {"type": "text", "text": "13812345678"}]
    redacted = await redact(chat(parts))
    assert redacted is not None
    assert redacted.body["messages"][0]["content"][1]["text"] == "[PHONE_1]"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "I am ann@example.com"}, {"role": "assistant", "content": "Thanks, Ann"}]},
        {"messages": [{"role": "user", "content": "It is 2024"}, {"role": "assistant", "content": "1111 2222 3333 it is"}]},
        {"messages": [{"role": "user", "content": "my key is sk-abcdefgh12345678ab"}, {"role": "user", "content": "Please keep it"}]},
        chat([{"type": "text", "text": "I am ann@example.com"}, {"type": "text", "text": "Thanks"}]),
        chat(json.dumps({"years": ["2019", "2020", "2021", "2022"], "days": ["11", "12", "2023"]})),
        chat(json.dumps({"a": "at the", "b": "example.com site", "c": "12", "d": "34"})),
        chat("hi", stop=["\n\n", "User:", "@", "END"]),
    ],
)  # fmt: skip
async def test_texts_side_by_side_that_are_no_value_may_leave(body: dict[str, Any]) -> None:
    assert await redact(body) is not None


def test_seams_know_where_each_text_is() -> None:
    long = "a" * 1000
    seams = Seams(["ab", "", "cd", long, "ef"], "-")
    assert seams.text.startswith("ab-cd-aaa")
    assert seams.text.endswith("aaa-ef")
    assert len(seams.text) < 700
    assert seams.is_inside(0, 2)
    assert not seams.is_inside(1, 4)
    at = seams.text.index("ef")
    assert not seams.is_inside(at - 3, at + 1)


async def test_equal_names_after_hiding_keep_the_request() -> None:
    body = chat(json.dumps({"ann@example.com": 1, "EMAIL_1": 2}))
    redacted = await redact(body)
    assert redacted is None or len(json.loads(redacted.body["messages"][0]["content"])) == 2


async def test_numbers_become_placeholders_and_other_numbers_stay() -> None:
    text = json.dumps(
        {"card": 4111111111111111, "same": 4111111111111111.0, "n": 12.50, "phone": 13812345678}
    )
    redacted = await redact(chat(text))
    assert redacted is not None
    assert "4111" not in sent(redacted)
    assert "13812345678" not in sent(redacted)
    assert json.loads(redacted.body["messages"][0]["content"])["n"] == 12.5
