"""Every style of writing calls: what they come to, wherever the text is split."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.style_cases import CASES, TOOLS, Case
from tests.server.style_texts import MALFORMED, WELL, WRITERS, malformed, well_formed
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import TOOL_STYLES, Styles
from weighbridge.server.styles.pieces import CallArguments, CallBegun, Piece, Thought
from weighbridge.server.styles.reasoning import THINK

Read = tuple[str, str, list[tuple[str, str]]]


def reading(style: str) -> AnswerReading:
    return AnswerReading(Styles(TOOL_STYLES[style], THINK), TOOLS)


def split(text: str, cuts: Sequence[int]) -> list[str]:
    bounds = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def gathered(pieces: Sequence[Piece]) -> Read:
    said = "".join(one for one in pieces if isinstance(one, str))
    thought = "".join(one.text for one in pieces if isinstance(one, Thought))
    names = [one.name for one in pieces if isinstance(one, CallBegun)]
    arguments = ["" for _ in names]
    for one in pieces:
        if isinstance(one, CallArguments):
            arguments[one.index] += one.text
    return said, thought, list(zip(names, arguments, strict=True))


def read(style: str, parts: Sequence[str]) -> Read:
    stream = reading(style).stream()
    return gathered([*(piece for part in parts for piece in stream.push(part)), *stream.finish()])


@pytest.mark.parametrize("style", sorted(TOOL_STYLES))
def test_space_is_held_within_bounds(style: str) -> None:
    stream = reading(style).stream()
    pieces = [piece for _ in range(2000) for piece in stream.push("\n")]
    said, _, _ = gathered(pieces)
    if style != "harmony":
        assert len(said) > 900
    assert len(gathered([*pieces, *stream.finish()])[0]) in (2000, 0)


def value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.style}: {case.text[:40]}")
def test_an_answer_comes_to_its_text_and_calls(case: Case) -> None:
    said, thought, calls = read(case.style, [case.text])
    assert (said, thought) == (case.said, case.thought)
    assert [(name, value(arguments)) for name, arguments in calls] == list(case.calls)
    assert read(case.style, list(case.text)) == (said, thought, calls), "by the character"


@given(st.sampled_from(CASES), st.lists(st.integers(0, 500), max_size=12))
def test_it_comes_to_the_same_wherever_it_is_split(case: Case, cuts: list[int]) -> None:
    assert read(case.style, split(case.text, cuts)) == read(case.style, [case.text])


MARKS = sorted(
    {mark for style in TOOL_STYLES.values() for mark in (*style.marks, *(one.mark for one in style.openings))}
)
PARTS = [
    *MARKS,
    "look",
    "</function>",
    "<parameter=key>",
    "</parameter>",
    "<function=look>",
    '{"name": "look", ',
    '"arguments": {',
    "}",
    "[",
    "]",
    "\n",
    " ",
    "a",
    ">",
    '"',
    "```json",
    "functions.look:0",
    " to=functions.look",
]


@given(
    st.sampled_from(sorted(TOOL_STYLES)),
    st.lists(st.sampled_from(PARTS), max_size=16).map("".join),
    st.lists(st.integers(0, 500), max_size=12),
)
def test_what_is_broken_comes_to_the_same_too_and_is_text_where_it_is_no_call(
    style: str, text: str, cuts: list[int]
) -> None:
    said, thought, calls = read(style, split(text, cuts))
    assert (said, thought, calls) == read(style, [text])
    assert all(name in TOOLS for name, _ in calls)
    if not calls and style != "harmony":
        assert said == text, "nothing is lost, and nothing doubled"


@pytest.mark.parametrize("style", WRITERS)
def test_calls_by_the_dozen_come_to_what_was_written(style: str) -> None:
    cases = well_formed(style)
    assert len(cases) == WELL
    for case in cases:
        said, _, calls = read(style, [case.text])
        assert (said.strip(), [(name, value(arguments)) for name, arguments in calls]) == (
            case.said.strip(),
            list(case.calls),
        )
        assert read(style, list(case.text)) == read(style, [case.text])


@pytest.mark.parametrize("style", WRITERS)
@given(data=st.data())
def test_what_goes_wrong_comes_to_the_same_wherever_it_is_split(style: str, data: st.DataObject) -> None:
    cases = malformed(style)
    assert len(cases) == MALFORMED
    case = data.draw(st.sampled_from(cases))
    cuts = data.draw(st.lists(st.integers(0, 500), max_size=6))
    assert read(style, split(case.text, cuts)) == read(style, [case.text])
