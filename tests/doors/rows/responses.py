"""OpenAI's Responses: each field with good and bad values, and its events."""

from __future__ import annotations

from typing import Any

from tests.doors.client import Reply
from tests.doors.rows.endpoints import JSON, NO_MODEL, SEVERAL, STREAM, not_allowed
from tests.doors.rows.extension import MISSED
from tests.doors.rows.fields import TOOL
from tests.doors.table import GONE, MODEL, Row, Want, at, bad, ok
from tests.doors.table import RESPONSES as PATH


def body(**fields: Any) -> dict[str, Any]:
    """The body of a short response, changed as the fields say."""
    made = {
        "model": MODEL,
        "input": "What does it weigh?",
        "max_output_tokens": 4,
        "temperature": 0,
        **fields,
    }
    return {name: value for name, value in made.items() if value is not GONE}


def row(name: str, want: Want, differs: Any = None, **fields: Any) -> Row:
    return Row(f"a response: {name}", want, body(**fields), path=PATH, differs=differs or {})


def named(field: str, value: Any) -> str:
    text = repr(value)
    return f"{field}: {text if len(text) < 90 else f'{text[:40]} ... {text[-40:]}'}"


def refused(field: str, *values: Any, param: str | None = None) -> list[Row]:
    return [row(named(field, value), bad(param or field), **{field: value}) for value in values]


def taken(field: str, *values: Any) -> list[Row]:
    return [row(named(field, value), ok(tokens=4), **{field: value}) for value in values]


def is_whole(reply: Reply) -> bool:
    value = reply.json
    [item] = value["output"]
    usage = value["usage"]
    return bool(
        value["object"] == "response"
        and value["status"] == "incomplete"
        and value["incomplete_details"] == {"reason": "max_output_tokens"}
        and item["type"] == "message"
        and item["content"][0]["type"] == "output_text"
        and usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        and usage["output_tokens"] == 4
    )


def is_streamed(reply: Reply) -> bool:
    """Every event there is for a text, in its order."""
    kinds = [event["type"].removeprefix("response.") for event in reply.events]
    first, last = (
        ["created", "in_progress", "output_item.added", "content_part.added"],
        [
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete",
        ],
    )
    middle = set(kinds[4:-4])
    numbers = [event["sequence_number"] for event in reply.events]
    text = "".join(event["delta"] for event in reply.events if event["type"].endswith("delta"))
    return (
        kinds[:4] == first
        and kinds[-4:] == last
        and middle == {"output_text.delta"}
        and numbers == list(range(len(kinds)))
        and reply.events[-1]["response"]["output"][0]["content"][0]["text"] == text
        and reply.events[-1]["response"]["usage"]["output_tokens"] == 4
    )


def is_a_begun_call(reply: Reply) -> bool:
    [item] = reply.json["output"]
    return bool(
        reply.json["status"] == item["status"] == "incomplete"
        and item["type"] == "function_call"
        and item["name"] == "weigh"
    )


def is_counted(reply: Reply) -> bool:
    return reply.json["object"] == "response.input_tokens" and reply.json["input_tokens"] > 20


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


FUNCTION = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
CALL = {"type": "function_call", "call_id": "c1", "name": "weigh", "arguments": '{"of": "it"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "nine"}

RESPONSES = [
    row(
        "in one piece", ok(tokens=4, tenant="default", left=False, headers=JSON, max_tokens=4, body=is_whole)
    ),
    row("streamed", ok(tokens=4, headers=STREAM, left=False, body=is_streamed), stream=True),
    row(
        "that must leave",
        ok(left=True, placement="cloud"),
        at("single gateway", "one place", bad("weighbridge", headers=JSON)),
        weighbridge={"placement": "only_cloud"},
    ),
    row("without a model", ok(tokens=4), SEVERAL, model=GONE),
    row("of an unknown model", NO_MODEL, model="nobody"),
    row("too late", MISSED, stream=True, weighbridge={"deadline_ms": 0.001, "placement": "only_edge"}),
    row("with a misspelt restriction", bad("weighbridge"), weighbridge={"label": ["a"]}),
    Row("a response: GET", not_allowed("POST"), method="GET", path=PATH),
    row(
        "of a prompt longer than the context",
        bad(code="context_length_exceeded"),
        input="weigh it " * 2000,
        weighbridge={"placement": "only_edge"},
    ),
    Row(
        "tokens of a response",
        ok(headers=JSON, body=is_counted, left=False),
        {"model": MODEL, "input": "What does it weigh?", "instructions": "be brief", "tools": [FUNCTION]},
        path=PATH + "/input_tokens",
    ),
    Row(
        "tokens of a response of nobody",
        NO_MODEL,
        {"model": "nobody", "input": "What does it weigh?"},
        path=PATH + "/input_tokens",
    ),
    Row(
        "tokens of a response to nothing",
        bad("input"),
        {"model": MODEL, "input": []},
        path=PATH + "/input_tokens",
    ),
    Row(
        "a conversation to make shorter",
        Want(404, "not_here", "invalid_request_error", error=True, says="summary"),
        body(),
        path=PATH + "/compact",
    ),
    # -- input
    *refused(
        "input",
        GONE,
        None,
        [],
        7,
        {},
        ["hello"],
        [{}],
        [{"role": "user"}],
        [{"role": "nobody", "content": "x"}],
    ),
    *refused("input", [{"type": "web_search_call", "id": "a"}], [{"type": 7}], [CALL | {"call_id": None}]),
    *refused(
        "input", user({"type": "input_file", "file_id": "f"}), user({"type": "input_text"}), user("hello")
    ),
    *refused("input", user({"type": "input_image", "file_id": "f"}), [CALL, OUTPUT | {"output": 7}]),
    *taken(
        "input", user({"type": "input_text", "text": "hello"}), [{"role": "developer", "content": "hello"}]
    ),
    row(
        "of all kinds of items",
        ok(tokens=4),
        input=[
            {"role": "system", "content": "be brief"},
            *user({"type": "input_text", "text": "weigh"}, {"type": "input_text", "text": "it"}),
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
            CALL,
            OUTPUT,
        ],
    ),
    row(
        "of arguments that were cut off",
        ok(tokens=4),
        input=[*user(), CALL | {"arguments": '{"of": "i'}, OUTPUT],
    ),
    # -- the other fields
    *refused("instructions", 7, []),
    *taken("instructions", "be brief", None),
    *refused("stream", "yes", 1),
    *refused("max_output_tokens", 0, -1, "4", 4.5),
    *taken("max_output_tokens", 4.0),
    *refused("temperature", -0.1, 2.1, "hot"),
    *refused("top_p", 0, 1.1),
    *refused("top_logprobs", -1, 21),
    *refused("text", 7, {"format": {"type": "xml"}}, {"format": {"type": "json_schema", "name": "a"}}),
    *refused("tools", 7, [{}], [{"type": "function"}], [{"type": "web_search"}], [{"type": "custom"}]),
    *refused(
        "tools", [FUNCTION, {"type": "file_search"}], [{"type": "namespace", "name": "a", "tools": [{}]}]
    ),
    row(
        "with a search beside a function of its own, as Codex asks",
        ok(tokens=4, body=lambda reply: [one["type"] for one in reply.json["tools"]] == ["function"]),
        tools=[FUNCTION, {"type": "web_search", "external_web_access": True}],
        tool_choice="auto",
        weighbridge={"placement": "only_edge"},
    ),
    *refused("tool_choice", "maybe", 7, {"type": "file_search"}, {"type": "function", "name": "nobody"}),
    row(
        "with tools on a template that has no place for them",
        ok(),
        tools=[FUNCTION],
        weighbridge={"placement": "only_edge"},
    ),
    row("with tools, none of which may be called", ok(tokens=4), tools=[FUNCTION], tool_choice="none"),
    row(
        "of a call that must be made and is cut off",
        ok(tokens=2, body=is_a_begun_call),
        tools=[FUNCTION],
        tool_choice={"type": "function", "name": "weigh"},
        max_output_tokens=2,
        weighbridge={"placement": "only_edge"},
    ),
    *refused("metadata", 7, {"a": 7}, {str(number): "" for number in range(17)}, {"a": "x" * 513}),
    *taken("metadata", {"a": "b"}),
    *refused("truncation", "middle"),
    *taken("truncation", "auto", "disabled"),
    *refused("include", 7, "all"),
    *taken("include", ["reasoning.encrypted_content"]),
    *refused("reasoning", 7, {"effort": "some"}),
    *refused("conversation", "conv_1"),
    *refused("prompt", {"id": "p"}),
    *taken("parallel_tool_calls", True, False),
    row("of fields that nobody knows", ok(tokens=4), unknown=1, service_tier="auto", prompt_cache_key="k"),
    row(
        "with log-probabilities",
        ok(tokens=4, body=lambda reply: len(reply.json["output"][0]["content"][0]["logprobs"]) == 4),
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    ),
]
