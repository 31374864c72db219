"""Fields of OpenAI's with every kind of wrong value; the error names the field."""

from __future__ import annotations

from typing import Any

from tests.doors.client import Reply
from tests.doors.table import GONE, Row, at, bad, chat, ok, told


def user(**message: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hello", **message}]


def refused(field: str, *values: Any) -> list[Row]:
    """A row for each wrong value of a field."""
    return [Row(f"{field}: {short(value)}", bad(field), chat(**{field: value})) for value in values]


def taken(field: str, *values: Any, tokens: int | None = 4) -> list[Row]:
    return [Row(f"{field}: {short(value)}", ok(tokens=tokens), chat(**{field: value})) for value in values]


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 50 else f"{text[:40]}... ({len(text)})"


def wrong_messages(name: str, messages: Any) -> Row:
    return Row(f"messages: {name}", bad("messages"), chat(messages=messages))


def is_a_begun_call(reply: Reply) -> bool:
    """A call whose arguments are not there yet, and nothing of it in the text."""
    [choice] = reply.json["choices"]
    message = choice["message"]
    [call] = message["tool_calls"]
    return (
        choice["finish_reason"] == "length" and not message["content"] and call["function"]["name"] == "weigh"
    )


def called(reply: Reply) -> list[str]:
    return [one["function"]["name"] for one in reply.json["choices"][0]["message"]["tool_calls"]]


def named(tool: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool}}


TOOL = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}

FIELDS = [
    wrong_messages("none", GONE),
    wrong_messages("null", None),
    wrong_messages("empty", []),
    wrong_messages("a string", "hello"),
    wrong_messages("an object", {"role": "user", "content": "hello"}),
    wrong_messages("strings", ["hello"]),
    wrong_messages("a null among them", [*user(), None]),
    wrong_messages("without a role", [{"content": "hello"}]),
    wrong_messages("with a number as the role", user(role=7)),
    wrong_messages("with null as the role", user(role=None)),
    wrong_messages("with an empty role", user(role="")),
    wrong_messages("without content", [{"role": "user"}]),
    wrong_messages("with null as the content", user(content=None)),
    wrong_messages("with a number as the content", user(content=7)),
    wrong_messages("with an object as the content", user(content={"text": "hello"})),
    wrong_messages("the second one without a role", [*user(), {"content": "hello"}]),
    Row(
        "an answer of before without content",
        ok(tokens=4),
        chat(messages=[*user(), {"role": "assistant"}, *user()]),
    ),
    Row("a message in parts", ok(tokens=4), chat(messages=user(content=[{"type": "text", "text": "hello"}]))),
    Row(
        "an answer of before that refused, as it is answered and in parts",
        ok(tokens=4),
        chat(
            messages=[
                *user(),
                {"role": "assistant", "content": None, "refusal": "I would not."},
                *user(),
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "I would not."}]},
                *user(),
            ],
            weighbridge={"placement": "only_edge"},
        ),
    ),
    Row("a message of no words", ok(tokens=4), chat(messages=user(content=""))),
    Row("a message with a name and more", ok(tokens=4), chat(messages=user(name="jane", custom=[1]))),
    Row("half a character in a message", bad(says="not valid JSON"), chat(messages=user(content="\ud83d"))),
    *refused("stream", "yes", "true", 1, 0, [], {}),
    *taken("stream", None, False),
    *refused("stream_options", "usage", [], 7, {"include_usage": "yes"}, {"include_usage": 1}),
    *taken("stream_options", None, {}, {"include_usage": True}, {"unknown": 1}),
    *refused("n", 0, -1, True, 1.5, "2", [], 17, 1_000_000_000, 10**30),
    *taken("n", None, 1, 1.0, tokens=4),
    *refused("max_tokens", 0, -1, True, 1.5, "4", []),
    *taken("max_tokens", 4, 4.0),
    *taken("seed", 7.0),
    Row("stop_token_ids with fractions of nothing", ok(), chat(stop_token_ids=[1.0, 2.0])),
    *refused("max_completion_tokens", 0, -1, True, "4"),
    Row(
        "max_completion_tokens alone",
        ok(tokens=3, max_tokens=3),
        chat(max_tokens=GONE, max_completion_tokens=3),
    ),
    Row("max_completion_tokens beside max_tokens", ok(tokens=3, max_tokens=3), chat(max_completion_tokens=3)),
    *(
        Row(
            f"{field}: {short(value)}, for a cloud", bad(field), told(placement="only_cloud") | {field: value}
        )
        for field, value in (
            ("messages", []),
            ("messages", user(role="")),
            ("n", 0),
            ("max_tokens", 0),
            ("max_completion_tokens", -1),
        )
    ),
    Row(
        "more tokens than the context has room for",
        ok(),
        chat(max_tokens=100_000, stop="e", weighbridge={"placement": "only_edge"}),
        differs=at("route", "room", bad(code="context_length_exceeded")),
    ),
    Row(
        "a prompt longer than the context",
        bad(code="context_length_exceeded"),
        chat(messages=user(content="weigh it " * 2000), weighbridge={"placement": "only_edge"}),
    ),
    *refused("temperature", -0.1, 2.1, "hot", True, []),
    *taken("temperature", 0),
    # A seed, so that no draw of an end comes before the fourth token at one of the doors.
    Row("temperature: None", ok(tokens=4), chat(temperature=None, seed=1)),
    Row("temperature: 2", ok(tokens=4), chat(temperature=2, seed=1)),
    *refused("top_p", 0, -1, 1.1, "all"),
    *refused("presence_penalty", -2.1, 2.1, "much"),
    *refused("frequency_penalty", -2.1, 2.1),
    *refused("seed", "x", 1.5, []),
    *refused("stop", "", [""], ["a", ""], 7, [7], {}, ["a"] * 17),
    *taken("stop", None, [], "\u0000never", ["\u0000never", "\u0000ever"]),
    *refused("logit_bias", {"a": 1}, {"5": 101}, {"5": "much"}, {"999999": 1}, [], 7),
    *refused("user", 7, [], {}),
    Row("a salt of 1,025 characters", bad("cache_salt"), chat(cache_salt="x" * 1025)),
    *refused("cache_salt", 7, [], {}),
    *refused("response_format", "json", {}, {"type": "xml"}, {"type": "json_schema"}, []),
    *refused(
        "tools", "weigh", {}, [{}], [{"type": "function"}], [{"type": "function", "function": {"name": ""}}]
    ),
    *refused("tool_choice", "maybe", 7, {"type": "function"}),
    *refused("logprobs", "yes", 5),
    *refused("top_logprobs", -1, "many"),
    Row(
        "more log-probabilities than there are to have", bad("logprobs"), chat(logprobs=True, top_logprobs=50)
    ),
    Row(
        "a call that must be made and is cut off",
        ok(tokens=2, body=is_a_begun_call),
        chat(
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "weigh"}},
            max_tokens=2,
            weighbridge={"placement": "only_edge"},
        ),
    ),
    Row("no tools at all", ok(tokens=4), chat(tools=[], tool_choice="none")),
    Row(
        "tools on a template that has no place for them",
        ok(tokens=4),
        chat(tools=[TOOL], weighbridge={"placement": "only_edge"}),
    ),
    Row(
        "some of the tools, one of which must be called",
        ok(body=lambda reply: called(reply) == ["send"]),
        chat(
            tools=[TOOL, {"type": "function", "function": {"name": "send"}}],
            tool_choice={
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [named("send")]},
            },
            max_tokens=60,
            weighbridge={"placement": "only_edge"},
        ),
    ),
    *refused(
        "tool_choice",
        {"type": "allowed_tools"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("nobody")]}},
    ),
    *refused("modalities", ["text", "audio"]),
    *taken("modalities", ["text"], None),
    *refused("audio", {"voice": "alloy", "format": "wav"}),
    *refused("typical_p", 0.5),
    *taken("typical_p", 1, None),
    *refused("allowed_token_ids", [], [999999], "all"),
    *refused("bad_words", [""], "no", 7),
    *refused("structured_outputs", {"structural_tag": "x"}, {"choice": []}),
    Row(
        "an answer that has begun",
        ok(tokens=4),
        chat(
            messages=[*user(), {"role": "assistant", "content": "I weigh"}],
            continue_final_message=True,
            add_generation_prompt=False,
            weighbridge={"placement": "only_edge"},
        ),
    ),
    Row(
        "an answer that cannot go on, as it has not begun",
        bad("messages"),
        chat(continue_final_message=True, weighbridge={"placement": "only_edge"}),
    ),
    Row(
        "one of several texts",
        ok(body=lambda reply: reply.json["choices"][0]["message"]["content"] in ("left", "right")),
        chat(guided_choice=["left", "right"], weighbridge={"placement": "only_edge"}, max_tokens=20),
    ),
    Row(
        "a grammar of llama.cpp's",
        ok(body=lambda reply: reply.json["choices"][0]["message"]["content"] == "(x)"),
        chat(grammar='root ::= "(" "x" ")"', weighbridge={"placement": "only_edge"}, max_tokens=20),
    ),
    Row(
        "fields that nobody knows",
        ok(tokens=4),
        chat(unknown=1, store=False, metadata={"a": "b"}, service_tier="auto"),
    ),
]
