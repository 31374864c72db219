# ruff: noqa: E501 - tables read best a case to a line
"""Values come back however a model writes the placeholder, escaped for where it stands, however the stream is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.routes.privacy.restoring.chunks import ChunkRestorer
from weighbridge.routes.privacy.restoring.json_place import JsonPlace
from weighbridge.routes.privacy.restoring.placeholders import LONGEST, TextRestorer

ADDRESS = '12 "High" Street\nLondon\tN1\\2'
VALUES = {
    "[ADDRESS_1]": ADDRESS,
    "[EMAIL_1]": "ann@example.com",
    "[EMAIL_12]": "bob@example.org",
    "[NATIONAL_ID_1]": "X 1",
}


def restored(text: str, *, in_json: bool = False, piece: int = 0) -> str:
    restorer = TextRestorer(VALUES, in_json=in_json)
    size = piece or len(text) or 1
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return "".join([*map(restorer.push, pieces), restorer.finish()])


@pytest.mark.parametrize(
    "written",
    [
        "[EMAIL_1]", "[email_1]", "[Email_1]", "[ EMAIL_1 ]", "[EMAIL 1]", "[EMAIL-1]", "[EMAIL1]", "[EMAIL_01]", "[EMAIL\\_1]",
        "\\[EMAIL_1\\]", "\\[EMAIL\\_1\\]", "\\\\[EMAIL\\\\_1\\\\]", "【EMAIL_1】", "［EMAIL_1］", "EMAIL_1", "EMAIL\\_1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [0, 1, 3])
def test_placeholders_that_a_model_rewrites_come_back(written: str, piece: int) -> None:
    assert restored(f"to {written}, now", piece=piece) == "to ann@example.com, now"


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        ("**[EMAIL_1]**", "**ann@example.com**"),
        ("`EMAIL_1`", "`ann@example.com`"),
        ("(EMAIL_1)", "(ann@example.com)"),
        ("<EMAIL_1>", "<ann@example.com>"),
        ("[[EMAIL_12]]", "[bob@example.org]"),
        ("[EMAIL_1](mailto:EMAIL_1)", "ann@example.com(mailto:ann@example.com)"),
        ("https://x.org/?q=%5BEMAIL_1%5D&z", "https://x.org/?q=ann%40example.com&z"),
        ("[national id 1] [National-ID_1]", "X 1 X 1"),
        ("get_EMAIL_1_x getEMAIL_1X", "get_ann@example.com_x getann@example.comX"),
    ],
)
def test_what_stands_around_a_placeholder_stays(written: str, becomes: str) -> None:
    assert restored(written) == becomes


@pytest.mark.parametrize(
    "text",
    [
        "[EMAIL_2]",
        "[EMAIL]",
        "EMAIL_",
        "email_1",
        "MYEMAIL_1",
        "EMAIL_123",
        "[mail 1]",
        "email 1 of 3",
        "[EMAIL x1]",
        "C:\\[x]",
    ],
)
def test_what_is_no_placeholder_stays_as_it_is(text: str) -> None:
    assert restored(text) == text
    assert restored(text, piece=1) == text


def test_a_backslash_that_is_no_escape_of_it_stays() -> None:
    assert restored('{"p": "C:\\\\Users\\\\[NATIONAL_ID_1]"}') == '{"p": "C:\\\\Users\\\\X 1"}'


# -- where it stands -------------------------------------------------------------------------------------


def nested(depth: int) -> tuple[str, Any]:
    """JSON in a string in JSON, so deep, with a placeholder at the bottom; and what it is with the value."""
    text, value = "to [ADDRESS_1]!", f"to {ADDRESS}!"
    for _ in range(depth):
        text = json.dumps({"a": text, "n": [1, True, None]})
        value = json.dumps({"a": value, "n": [1, True, None]}, ensure_ascii=False)
    return text, value


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4, 7, 11])
@pytest.mark.parametrize("piece", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "around", ["{}", "  {}\n", "Here:\n```json\n{}\n```\nand so on", "It is {} I think.", "[{}, 1]"]
)
def test_a_value_is_escaped_as_deep_as_it_stands(depth: int, piece: int, around: str) -> None:
    text, value = nested(depth)
    if depth == 0 and around == "[{}, 1]":
        return  # no JSON
    assert restored(around.replace("{}", text), piece=piece) == around.replace("{}", value)


@pytest.mark.parametrize(
    "text",
    [
        "[ADDRESS_1] is it",
        "[Note] [ADDRESS_1]",
        'He said "[ADDRESS_1]"',
        '{x} "[ADDRESS_1]"',
        "a [1] [ADDRESS_1]",
    ],
)
def test_in_prose_a_value_is_as_it_was(text: str) -> None:
    assert restored(text) == text.replace("[ADDRESS_1]", ADDRESS)


def test_numbers_that_are_none_in_json_do_not_end_it() -> None:
    answer = json.loads(restored('{"mean": NaN, "most": -Infinity, "to": "[ADDRESS_1]"}'))
    assert answer["to"] == ADDRESS


def test_a_number_in_json_comes_back_as_it_was() -> None:
    assert json.loads(restored('{"id": "[NATIONAL_ID_1]", "n": 3}')) == {"id": "X 1", "n": 3}


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["[ADDRESS_1]", "x [ADDRESS_1] \"y\\", "", "{", '["', "\n"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "[ADDRESS_1]", 'q"']), inner, max_size=3),
        inner.map(json.dumps),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None)
@given(json_values, st.integers(1, 9), st.booleans())
def test_json_stays_json_with_the_values_in_its_strings(value: Any, piece: int, is_ascii: bool) -> None:
    def with_values(one: Any) -> Any:
        if isinstance(one, str):
            try:
                inner = json.loads(one)
            except ValueError:
                inner = None
            if isinstance(inner, dict | list):
                return with_values(inner)
            return one.replace("[ADDRESS_1]", ADDRESS)
        if isinstance(one, dict):
            return {with_values(key): with_values(each) for key, each in one.items()}
        return [with_values(each) for each in one] if isinstance(one, list) else one

    def opened(one: Any) -> Any:
        """The same with JSON in strings opened."""
        if isinstance(one, str):
            try:
                inner = json.loads(one)
            except ValueError:
                return one
            return opened(inner) if isinstance(inner, dict | list) else one
        if isinstance(one, dict):
            return {key: opened(each) for key, each in one.items()}
        return [opened(each) for each in one] if isinstance(one, list) else one

    text = json.dumps({"top": value}, ensure_ascii=is_ascii)
    assert opened(json.loads(restored(text, piece=piece))) == with_values({"top": value})


_PARTS = [
    *VALUES,
    *'[]{}":,\\ _1',
    "EMAIL",
    "\\[",
    "\\]",
    "\\_",
    "%5B",
    "%5D",
    "```json\n",
    "a",
    "\n",
    "\\u005b",
    "email 1]",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=20), st.data(), st.booleans())
def test_restoring_does_not_depend_on_the_cuts(parts: list[str], data: st.DataObject, in_json: bool) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    restorer = TextRestorer(VALUES, in_json=in_json)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join([*map(restorer.push, pieces), restorer.finish()]) == restored(text, in_json=in_json)


def test_little_is_held_back() -> None:
    restorer = TextRestorer(VALUES)
    text = "[EMAIL" + " " * 50 + "\\" * 500 + "[" * 500 + "EMAI" * 300
    out = 0
    for fed, letter in enumerate(text, 1):
        out += len(restorer.push(letter))
        assert fed - out <= LONGEST


@given(json_values)
def test_depth_is_that_of_the_strings(value: Any) -> None:
    """Fed with JSON up to any of its characters, the depth is at least 1 just where the string stands open."""
    text = json.dumps({"k": value})
    place = JsonPlace()
    inside = escaped = False
    for letter in text:
        place.feed(letter)
        if inside and not escaped and letter == "\\":
            escaped = True
            continue
        if letter == '"' and not escaped:
            inside = not inside
        escaped = False
        assert (place.depth > 0) == inside


# -- chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_tool_calls_come_back_whole(piece: int) -> None:
    restorer = ChunkRestorer(VALUES)
    arguments = json.dumps({"to": "[ADDRESS_1]", "[EMAIL_1]": json.dumps({"cc": "[ADDRESS_1]"})})
    first = {"index": 0, "id": "call_EMAIL_1", "function": {"name": "EMAIL_1_send", "arguments": ""}}
    got = [restorer.chunk({"choices": [{"index": 0, "delta": {"tool_calls": [first]}}]})]
    for at in range(0, len(arguments), piece):
        part = {"index": 0, "function": {"arguments": arguments[at : at + piece]}}
        got.append(restorer.chunk({"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]}))
    got.append(restorer.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}))
    calls = [call for chunk in got for call in chunk["choices"][0]["delta"].get("tool_calls") or ()]
    assert calls[0]["id"] == "call_ann@example.com"
    assert calls[0]["function"]["name"] == "ann@example.com_send"
    told = json.loads("".join(call["function"].get("arguments") or "" for call in calls))
    assert told["to"] == ADDRESS
    assert json.loads(told["ann@example.com"]) == {"cc": ADDRESS}
