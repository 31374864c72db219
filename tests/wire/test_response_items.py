"""What a request for a response says, as a chat: each kind of item, and what is refused, by its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.responses import ResponsesProtocol

Body = dict[str, Any]
TOOL = {"type": "function", "name": "weigh", "parameters": {}}
FORM = {"type": "json_schema", "name": "a"}


def read(given: Any, **fields: Any) -> list[Body]:
    """The messages of the chat that a request is."""
    ask = ResponsesProtocol().read(json.dumps({"model": "m", "input": given, **fields}).encode())
    found: list[Body] = json.loads(bytes(ask.fields["messages"]))
    return found


def user(*parts: Any) -> list[Body]:
    return [{"role": "user", "content": list(parts)}]


REFUSED: dict[str, tuple[Any, Body, str]] = {
    "an item that is none": (["x"], {}, "input[0]"),
    "an item of no kind": ([{"a": 1}], {}, "input[0].type"),
    "another's role": ([{"role": "root", "content": "x"}], {}, "input[0].role"),
    "a tool's role": ([{"role": "tool", "content": "x"}], {}, "input[0].role"),
    "content that is none": ([{"role": "user", "content": 7}], {}, "input[0].content"),
    "a part that is none": (user("x"), {}, "input[0].content[0]"),
    "a text that is none": (user({"type": "input_text", "text": 7}), {}, "input[0].content[0].text"),
    "a file": (user({"type": "input_file", "file_id": "f"}), {}, "input[0].content[0]"),
    "a picture without a place": (user({"type": "input_image", "file_id": "f"}), {}, "image_url"),
    "a picture in no detail": (user({"type": "input_image", "image_url": "u", "detail": "x"}), {}, "detail"),
    "a call without a name": (
        [{"type": "function_call", "call_id": "c", "arguments": ""}],
        {},
        "input[0].name",
    ),
    "an output of no call": ([{"type": "function_call_output", "output": "x"}], {}, "input[0].call_id"),
    "an output that is none": ([{"type": "function_call_output", "call_id": "c", "output": 7}], {}, "output"),
    "a thought of no parts": ([{"type": "reasoning", "summary": ["x"]}], {}, "input[0].summary"),
    "a reference to nothing": ([{"type": "item_reference"}], {}, "input[0].id"),
    "nothing": ([], {}, "input"),
    "a conversation": ("x", {"conversation": "c"}, "conversation"),
    "a prompt": ("x", {"prompt": {"id": "p"}}, "prompt"),
    "many metadata": ("x", {"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    "long metadata": ("x", {"metadata": {"a": "x" * 513}}, "metadata"),
    "a tool that OpenAI runs": ("x", {"tools": [{"type": "web_search", "name": "w"}]}, "tools[0]"),
    "a tool of no name": ("x", {"tools": [{"type": "function", "name": ""}]}, "tools[0]"),
    "another choice": ("x", {"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    "a choice of nameless tools": (
        "x",
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [{}]}},
        "tool_choice",
    ),
    "a form without a schema": ("x", {"text": {"format": FORM}}, "text.format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_an_error_that_names_it(name: str) -> None:
    given, fields, says = REFUSED[name]
    with pytest.raises(ApiError) as found:
        read(given, **fields)
    assert found.value.status == 400
    assert says in str(found.value)


def test_a_round_of_tools() -> None:
    items = [
        {"role": "user", "content": "how heavy?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "weigh it"}]},
        {"type": "function_call", "call_id": "c", "name": "weigh", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "9 kg"},
    ]
    call = {"id": "c", "type": "function", "function": {"name": "weigh", "arguments": "{}"}}
    assert read(items, instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how heavy?"},
        {"role": "assistant", "content": "", "reasoning_content": "weigh it", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "9 kg"},
    ]


SPACE = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [{**TOOL, "name": "find"}]}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Patches.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"},
}


def test_tools_in_namespaces_and_those_of_any_text_are_functions_of_a_chat() -> None:
    ask = ResponsesProtocol().read(
        json.dumps({"model": "m", "input": "x", "tools": [SPACE, PATCH, {"type": "web_search"}]}).encode()
    )
    functions = [one["function"] for one in json.loads(bytes(ask.fields["tools"]))]
    assert [one["name"] for one in functions] == ["crm__find", "patch"]
    assert functions[1]["parameters"]["required"] == ["input"]
    assert "start: /x+/" in functions[1]["description"]
    assert ask.notes == ["tools that nothing here runs are left out: web_search"]


@pytest.mark.parametrize(
    ("chosen", "called"),
    [
        ({"type": "custom", "name": "patch"}, "patch"),
        ({"type": "function", "name": "find", "namespace": "crm"}, "crm__find"),
    ],
)
def test_a_tool_that_must_be_called_is_named_as_the_chat_names_it(
    chosen: dict[str, Any], called: str
) -> None:
    body = {"model": "m", "input": "x", "tools": [SPACE, PATCH], "tool_choice": chosen}
    ask = ResponsesProtocol().read(json.dumps(body).encode())
    assert json.loads(bytes(ask.fields["tool_choice"]))["function"]["name"] == called
    demanded = json.dumps({**body, "tools": [SPACE, PATCH, {"type": "web_search"}]}).encode()
    with pytest.raises(ApiError, match="web_search"):
        ResponsesProtocol().read(demanded)


def test_a_round_of_such_tools() -> None:
    items = [
        {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": 'say "x"'},
        {"type": "function_call", "call_id": "b", "name": "find", "namespace": "crm", "arguments": "{}"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "7"}]},
    ]
    [said, first, second] = read(items)
    assert [(one["id"], one["function"]["name"]) for one in said["tool_calls"]] == [
        ("a", "patch"),
        ("b", "crm__find"),
    ]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"input": 'say "x"'}
    assert [(one["tool_call_id"], one["content"]) for one in (first, second)] == [("a", "done"), ("b", "7")]
