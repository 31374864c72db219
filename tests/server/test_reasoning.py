"""What a model thinks is told apart from its answer, and no call within it is made."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.style_cases import CALL, THOUGHTS
from tests.server.test_tool_styles import Read, gathered, split
from weighbridge.server.engine.tool_calls import as_delta, parse
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import JSON, Styles, styles_for
from weighbridge.server.styles.reasoning import THINK, THINK_BRACKETS, ReasoningStyle


def read(parts: Sequence[str], thinking: bool, style: ReasoningStyle | None = THINK) -> Read:
    stream = AnswerReading(Styles(JSON, style), {"look": None}, thinking=thinking).stream()
    return gathered([*(piece for part in parts for piece in stream.push(part)), *stream.finish()])


@pytest.mark.parametrize(("text", "thinking", "said", "thought"), THOUGHTS)
def test_thoughts_are_told_apart(text: str, thinking: bool, said: str, thought: str) -> None:
    assert read([text], thinking) == (said, thought, [])
    assert read(list(text), thinking) == (said, thought, [])
    turned = text.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
    if "thin " not in turned:
        expected = said.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
        assert read([turned], thinking, THINK_BRACKETS)[0] == expected


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("begun", ["", "<think>", "<think>a", "a", "<think>a</think>"])
def test_endless_space_is_not_held(begun: str, thinking: bool) -> None:
    stream = AnswerReading(Styles(JSON, THINK), {"look": None}, thinking=thinking).stream()
    told = [piece for _ in range(4) for piece in stream.push(begun + " " * 600)]
    assert gathered([*told, *stream.finish()]) == read([(begun + " " * 600) * 4], thinking)


def test_a_call_behind_a_thought_is_one() -> None:
    assert read([f"<think>I look.</think>\n{CALL}"], False) == ("", "I look.", [("look", "{}")])


def test_without_a_style_a_thought_is_text() -> None:
    assert read(["<think>I look.</think>No."], False, None) == ("<think>I look.</think>No.", "", [])


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", CALL, "a", " ", "\n", "<", "</th", "[", "{"]), max_size=12
    ),
    st.booleans(),
    st.lists(st.integers(0, 300), max_size=12),
)
def test_it_comes_to_the_same_wherever_it_is_split(parts: list[str], thinking: bool, cuts: list[int]) -> None:
    text = "".join(parts)
    assert read(split(text, cuts), thinking) == read([text], thinking)


def test_a_thought_is_shown_as_it_comes() -> None:
    stream = AnswerReading(Styles(JSON, THINK), None).stream()
    assert stream.push("<thi") == []
    assert as_delta(stream.push("nk>A key")) == {"reasoning_content": "A key"}
    assert as_delta(stream.push(", then</")) == {"reasoning_content": ", then"}
    assert as_delta(stream.push("think>It")) == {"content": "It"}


TEMPLATES = {
    "<|start|>assistant<|channel|>final<|message|>": "harmony",
    "<tool_call>\n<function=name>\n<parameter=key>": "qwen3-coder",
    "<tool_call>{{ name }}<arg_key>": "glm",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>": "deepseek-v3",
    "<|tool_calls_section_begin|><|tool_call_begin|>": "kimi-k2",
    "[AVAILABLE_TOOLS] [TOOL_CALLS]": "mistral",
    "<|tool_call|>": "granite",
    '<tool_call>\n{"name": ': "hermes",
    "<|python_tag|>": "llama3",
    "{{ messages }}": "json",
}


@pytest.mark.parametrize(("template", "name"), TEMPLATES.items())
def test_the_template_chooses_the_style_unless_it_is_named(template: str, name: str) -> None:
    chosen = styles_for(template)
    assert chosen.tools is not None
    assert (chosen.tools.name, chosen.reasoning) == (name, THINK)
    assert styles_for(template, "none", "none") == Styles(None, None)
    named = styles_for(template, "glm", "mistral")
    assert named.tools is not None
    assert (named.tools.name, named.reasoning) == ("glm", THINK_BRACKETS)


def test_mistral_thinks_between_brackets() -> None:
    assert styles_for("[TOOL_CALLS] [THINK]{{ x }}[/THINK]").reasoning is THINK_BRACKETS


def test_a_whole_answer_has_its_thought() -> None:
    whole = parse("<think>I look.</think>No.", AnswerReading(Styles(JSON, THINK), {"look": None}))
    assert (whole.text, whole.thought, whole.calls) == ("No.", "I look.", [])
