"""Tool calls over HTTP with the official client: whole and streamed, one and several, forced and written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.running import serving
from tests.server.tool_model import CALL, make_tool_model

TWO = rf"I will[.]\n{CALL % ('weigh', 12)}\n{CALL % ('weigh', 9)}"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weigh",
        "parameters": {
            "type": "object",
            "properties": {"load": {"type": "string", "maxLength": 20}, "heavy": {"type": "boolean"}},
            "required": ["load", "heavy"],
            "additionalProperties": False,
        },
    },
}
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Weigh it."}],
    "tools": [TOOL],
    "max_tokens": 400,
    "seed": 2,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    model = make_tool_model(tmp_path_factory.mktemp("tools") / "tiny")
    with serving(model, "--kv-cache-memory", "4MiB") as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def written(regex: str) -> dict[str, Any]:
    return ASK | {"extra_body": {"structured_outputs": {"regex": regex}}}


def streamed(client: openai.OpenAI, options: dict[str, Any]) -> tuple[str, list[Any], list[Any], str | None]:
    """The text, the calls as the client's own helper puts them together, the deltas, the finish reason."""
    with client.chat.completions.stream(**options) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        choice = stream.get_final_completion().choices[0]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    return choice.message.content or "", choice.message.tool_calls or [], deltas, choice.finish_reason


def plain(calls: list[Any]) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in calls]


def test_parallel_calls_stream_as_they_are_written(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**written(TWO)).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content == "I will."
    calls = plain(whole.message.tool_calls or [])
    assert [name for name, _ in calls] == ["weigh", "weigh"]
    assert [len(json.loads(value)["load"]) for _, value in calls] == [12, 9]

    text, found, deltas, finish = streamed(client, written(TWO))
    assert (text, plain(found), finish) == ("I will.", calls, "tool_calls")
    assert len({call.id for call in found}) == 2
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert [part.index for part in parts] == sorted(part.index for part in parts)
    for index in (0, 1):
        mine = [part for part in parts if part.index == index]
        assert (mine[0].id, mine[0].type, mine[0].function.name) == (found[index].id, "function", "weigh")
        assert all(part.id is None and part.function.name is None for part in mine[1:])
        assert len(mine) > 5, "the arguments come in pieces, with the model's tokens"
    shown = "".join(delta.content or "" for delta in deltas)
    assert shown == "I will.", "no markup"


def test_a_forced_call_streams_too(client: openai.OpenAI) -> None:
    options = ASK | {"tool_choice": "required"}
    whole = client.chat.completions.create(**options).choices[0]
    text, found, deltas, finish = streamed(client, options)
    assert (text, finish) == ("", "tool_calls")
    assert plain(found) == plain(whole.message.tool_calls or [])
    assert isinstance(json.loads(found[0].function.arguments)["heavy"], bool)
    assert sum(bool(delta.tool_calls) for delta in deltas) > 3


def test_what_is_no_call_is_text(client: openai.OpenAI) -> None:
    options = written(r'<tool_call>\n\{"name": "weigh", "load": "[a-z]{5}"\}')
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.finish_reason == "stop"
    assert whole.message.tool_calls is None
    text, found, _, finish = streamed(client, options)
    assert (text, found, finish) == (whole.message.content, [], "stop")
    assert text.startswith('<tool_call>\n{"name": "weigh", "load": "')


def test_a_call_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    options = written(CALL % ("weigh", 300)) | {"max_tokens": 60}
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.finish_reason == "length"
    assert whole.message.content is None
    (call,) = whole.message.tool_calls or []
    assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
    assert call.function.arguments.startswith('{"load": "')
    chunks = list(client.chat.completions.create(**options, stream=True))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert (
        "".join((part.function and part.function.arguments) or "" for part in parts)
        == call.function.arguments
    )
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_every_choice_has_calls_of_its_own(client: openai.OpenAI) -> None:
    options = written(CALL % ("weigh", 6)) | {"n": 2, "temperature": 1.0}
    whole = client.chat.completions.create(**options)
    chunks = client.chat.completions.create(**options, stream=True)
    arguments = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            for part in choice.delta.tool_calls or []:
                assert part.index == 0
                arguments[choice.index] += (part.function and part.function.arguments) or ""
    assert list(arguments.values()) == [plain(one.message.tool_calls or [])[0][1] for one in whole.choices]


def test_a_call_within_a_thought_is_none(client: openai.OpenAI) -> None:
    options = written(rf"<think>Perhaps {CALL % ('weigh', 4)}</think>\nNo[.]")
    whole = client.chat.completions.create(**options).choices[0]
    assert (whole.message.content, whole.message.tool_calls, whole.finish_reason) == ("No.", None, "stop")
    thought = (whole.message.model_extra or {})["reasoning_content"]
    assert thought.startswith('Perhaps <tool_call>\n{"name": "weigh"')
    assert thought.endswith("</tool_call>")
    text, found, deltas, finish = streamed(client, options)
    assert (text, found, finish) == ("No.", [], "stop")
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == thought


def test_a_tool_that_was_not_offered_is_not_called(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**written(CALL % ("other", 3))).choices[0]
    assert (whole.message.tool_calls, whole.finish_reason) == (None, "stop")
    assert (whole.message.content or "").startswith('<tool_call>\n{"name": "other"')
