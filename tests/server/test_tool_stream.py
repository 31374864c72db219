"""Tool calls read out of a stream: the same wherever it is split, as soon as they are certain, and never as text."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.server.engine.tool_calls import as_delta, parse
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import JSON as STYLE
from weighbridge.server.styles.choice import Styles
from weighbridge.server.styles.pieces import CallBegun, Piece
from weighbridge.server.styles.tool_stream import ToolStream

TOOLS: dict[str, Any] = {"look": None, "weigh": None}
Calls = list[tuple[str, str]]


def gathered(pieces: list[Piece]) -> tuple[str, Calls]:
    """What a client puts together from the deltas of these pieces, one delta a piece."""
    text, calls = "", {}
    for piece in pieces:
        delta = as_delta([piece])
        text += delta.get("content", "")
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                assert part["index"] == len(calls), "calls come in order, each with its name first"
                assert part["function"]["arguments"] == ""
                calls[part["index"]] = [part["function"]["name"], ""]
            else:
                calls[part["index"]][1] += part["function"]["arguments"]
    return text, [(name, arguments) for name, arguments in calls.values()]


def whole(text: str) -> tuple[str, Calls]:
    read = parse(text, AnswerReading(Styles(STYLE, None), TOOLS))
    return read.text, [(call.name, call.arguments) for call in read.calls]


def streamed(text: str, cuts: list[int]) -> tuple[str, Calls]:
    stream = ToolStream(TOOLS, STYLE)
    bounds = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    pieces = [piece for a, b in itertools.pairwise(bounds) for piece in stream.push(text[a:b])]
    return gathered(pieces + stream.finish())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["</tool_call>", '"}{', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=5), values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), arguments), min_size=1, max_size=3)
said = st.text(alphabet="ab \n<[.", max_size=8)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """An answer as a model writes it, the text in it, and its calls."""
    made = draw(calls)
    indent = draw(st.sampled_from([None, 1]))
    key = draw(st.sampled_from(["arguments", "parameters"]))
    turned = draw(st.booleans())
    written = []
    for name, given_arguments in made:
        one: dict[str, Any] = {"name": name, key: given_arguments}
        if turned:
            one = {"type": "function", key: given_arguments, "strict": None, "name": name}
        written.append(json.dumps(one, indent=indent, ensure_ascii=draw(st.booleans())))
    way = draw(st.sampled_from(["hermes", "mistral", "llama", "list"]))
    if way == "llama":
        return "; ".join(written), "", made
    if way == "list":
        return f"[{', '.join(written)}]", "", made
    before = draw(said)
    if way == "mistral":
        return f"{before} [TOOL_CALLS] [{', '.join(written)}]", before.rstrip(), made
    marked = "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in written)
    return f"{before}\n{marked}\n", before.rstrip(), made


cuts = st.lists(st.integers(0, 2000), max_size=30)


@given(answers(), cuts)
def test_calls_are_found_whole_wherever_the_text_is_split(
    answer: tuple[str, str, list[tuple[str, dict[str, Any]]]], cuts: list[int]
) -> None:
    text, before, made = answer
    found, parsed = streamed(text, cuts)
    assert found.lstrip() == before.lstrip()
    assert [(name, json.loads(value)) for name, value in parsed] == made
    assert (found, parsed) == whole(text)


MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<tool"]
JSON = ['{"name": "look", "arguments": ', '"name"', '"look"', '"arguments"', "{}", '{"a": 1}', "null", "7"]
junk = st.lists(st.sampled_from([*MARKS, *JSON, *'[]{}",:; \nx\\']), max_size=14).map("".join)


@given(junk | answers().map(lambda one: one[0][: 2 * len(one[0]) // 3]), cuts)
def test_nothing_depends_on_where_broken_text_is_split(text: str, cuts: list[int]) -> None:
    found, parsed = streamed(text, cuts)
    assert (found, parsed) == whole(text)
    if not parsed:
        assert found == text, "what is no call is text, to the letter"


@given(answers())
def test_an_answer_cut_off_anywhere_shows_no_part_of_a_call_that_has_begun(
    answer: tuple[str, str, list[tuple[str, dict[str, Any]]]],
) -> None:
    text, before, _ = answer
    stream, seen = ToolStream(TOOLS, STYLE), ""
    for end in range(len(text)):
        pieces = stream.push(text[end])
        seen += "".join(piece for piece in pieces if isinstance(piece, str))
        assert before.startswith(seen.rstrip()) or seen.strip() == "", "nothing of a call is ever shown"


BROKEN = [
    '<tool_call>{"name": "look"}</tool_call>',
    '<tool_call>{"name": "look", "arguments": null}</tool_call>',
    '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    "<tool_call>look(key)</tool_call>",
    "[TOOL_CALLS] none today",
    '{"name": "Ada", "arguments": {"for": "and against"}}',
    '{"answer": 42}',
    '[{"name": "Ada"}]',
    "[1, 2]",
    "1 < 2 and [T] <tool_cal",
    " \n",
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert whole(text) == (text, [])
    assert streamed(text, list(range(len(text)))) == (text, [])


CUT: list[tuple[str, Calls]] = [
    ('<tool_call>{"name": "look", "arguments": {"key": "a', [("look", '{"key": "a')]),
    ('<tool_call>{"name": "look", "arguments": {"key": 1}</tool_call>', [("look", '{"key": 1}')]),
    ('<tool_call>{"name": "look", "arguments": {"key": </tool_call>', [("look", '{"key": ')]),
    ('<tool_call>{"name": "look", "arguments": {}}</tool_', [("look", "{}")]),
    ('[TOOL_CALLS][{"name": "look", "arguments": {}}, ', [("look", "{}")]),
    ('[TOOL_CALLS][{"name": "look", "arguments": {}, "id": "ab', [("look", "{}")]),
    ('{"name": "look", "arguments": "{\\"key\\": 1}"}', [("look", '{"key": 1}')]),
]


@pytest.mark.parametrize(("text", "calls"), CUT)
def test_a_call_that_has_begun_stays_one(text: str, calls: Calls) -> None:
    assert whole(text) == ("", calls)


def test_each_part_is_there_as_soon_as_it_can_be() -> None:
    stream = ToolStream(TOOLS, STYLE)
    assert stream.push("Let me see. ") == ["Let me see."]
    assert stream.push("<tool_") == stream.push('call>{"name": "look", "argu') == []
    begun = stream.push('ments": {')
    assert isinstance(begun[0], CallBegun)
    assert (begun[0].index, begun[0].name, begun[0].id[:5]) == (0, "look", "call_")
    assert as_delta(begun)["tool_calls"][0]["function"] == {"name": "look", "arguments": "{"}
    assert as_delta(stream.push('"key": "a')) == {
        "tool_calls": [{"index": 0, "function": {"arguments": '"key": "a'}}]
    }
    assert as_delta(stream.push('"}')) == {"tool_calls": [{"index": 0, "function": {"arguments": '"}'}}]}
    assert stream.push("}\n</tool_call>\n") == []
    assert stream.push("So be it.") == ["\nSo be it."]
    assert stream.finish() == []


FORCED = '{"name": "weigh", "arguments": {"kg": 7}}'


@pytest.mark.parametrize("length", range(len(FORCED) + 1))
def test_a_forced_call_that_is_cut_off_is_a_call_and_never_text(length: int) -> None:
    for tools in (("weigh",), ("weigh", "look"), ("weigh", "weighty")):
        stream = ToolStream(dict.fromkeys(tools), STYLE, forced=True)
        text, calls = gathered([*stream.push(FORCED[:length]), *stream.finish()])
        assert text == ""
        names = [name for name, _ in calls]
        if tools == ("weigh",):
            assert names == ["weigh"], "there is no other"
        else:
            certain = length > FORCED.index("weigh") + (0 if "look" in tools else 5)
            assert names == (["weigh"] if certain else [])
        assert FORCED[len('{"name": "weigh", "arguments": ') : -1].startswith(
            "".join(one for _, one in calls)
        )
