"""Events and objects of OpenAI's Responses: whatever an answer is made of, OpenAI's own types take each of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import openai.types.responses as official
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent

from weighbridge.cost.usage import Usage
from weighbridge.wire.events import (
    ErrorPart,
    FinishPart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.protocols.response_events import ResponsesEncoder, ResponseWriter
from weighbridge.wire.protocols.responses import ResponsesProtocol, response_encoder

_UNION = get_args(get_args(ResponseStreamEvent)[0])
TYPES = {get_args(one.model_fields["type"].annotation)[0]: one for one in _UNION}
#: In OpenAI's own answers, and in the types of some versions of its SDK only.
BEYOND_THE_TYPES = {"name", "store"}


def validated(event: dict[str, Any]) -> Any:
    """The event as the official type of its kind reads it, strictly, and nothing in it that the type does not have."""
    model = TYPES[event["type"]].model_validate_json(json.dumps(event), strict=True)
    assert set(model.model_extra or ()) <= BEYOND_THE_TYPES, event
    if hasattr(model, "response"):
        assert set(model.response.model_extra or ()) <= BEYOND_THE_TYPES
    return model


def encoder_of(**fields: Any) -> ResponsesEncoder:
    body = {"model": "m", "input": "hi", **fields}
    return response_encoder(ResponsesProtocol().read(json.dumps(body).encode()))


def told(writer: ResponseWriter, batches: Sequence[Sequence[Part]]) -> list[dict[str, Any]]:
    events = [json.loads(json.dumps(event)) for parts in batches for event in writer.events(parts)]
    return events + json.loads(json.dumps(writer.events((), True)))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
logprobs = st.lists(
    st.fixed_dictionaries(
        {"token": texts, "logprob": st.floats(-50, 0)},
        optional={
            "bytes": st.none() | st.lists(st.integers(0, 255), max_size=3),
            "top_logprobs": st.just([{}]),
        },
    ),
    max_size=2,
)
parts = st.one_of(
    st.builds(TextPart, texts, logprobs=logprobs),
    st.builds(ReasoningPart, texts),
    st.builds(RefusalPart, texts),
    st.builds(ToolCallPart, st.integers(0, 2), arguments=texts, id=texts, name=texts),
    st.builds(FinishPart, st.sampled_from(["stop", "length", "tool_calls", "content_filter", "abort"])),
    st.builds(UsagePart, st.builds(Usage, *[st.integers(0, 9)] * 5)),
)
failures = st.builds(ErrorPart, texts, st.none() | texts)
answers = st.lists(st.lists(parts | failures, max_size=4), max_size=6) | st.lists(
    st.lists(parts, max_size=4), max_size=6
)


@given(answers, st.booleans(), st.booleans())
def test_every_event_is_valid_and_they_add_up_to_the_response(
    batches: list[list[Part]], summarises: bool, background: bool
) -> None:
    asked: dict[str, Any] = {"reasoning": {"summary": "auto"}} if summarises else {}
    events = told(encoder_of(**asked, background=background).writer, batches)
    for number, event in enumerate(events):
        validated(event)
        assert event["sequence_number"] == number
    *_, last = events
    assert [event["type"] for event in events].count("response.created") == 1
    assert events[0]["type"] == "response.created"
    assert last["type"] in ("response.completed", "response.incomplete", "response.failed")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert last["response"]["output"] == done
    assert pieced_together(events) == done


def pieced_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client makes it of the deltas alone, with what only the end of an item tells taken over."""
    items: dict[int, dict[str, Any]] = {}
    for event in events:
        kind, index = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            items[index] = event["item"]
        elif kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
            items[index]["summary" if "summary_index" in event else "content"].append(event["part"])
        elif kind == "response.function_call_arguments.delta":
            items[index]["arguments"] += event["delta"]
        elif kind == "response.output_item.done":
            items[index]["status"] = event["item"]["status"]
        elif kind.endswith(".delta"):
            place = "summary" if "summary_index" in event else "content"
            part = items[index][place][event.get("content_index", event.get("summary_index"))]
            part["refusal" if "refusal" in part else "text"] += event["delta"]
            if event.get("logprobs"):
                part["logprobs"] += event["logprobs"]
    assert list(items) == sorted(items)
    return list(items.values())


@given(answers)
def test_an_answer_in_one_piece_is_that_of_the_stream(batches: list[list[Part]]) -> None:
    streamed, whole = encoder_of().writer, encoder_of().writer
    events = told(streamed, batches)
    told(whole, [[part for batch in batches for part in batch]])
    first, second = events[-1]["response"], whole.snapshot()
    Response.model_validate_json(json.dumps(second), strict=True)
    assert without_names(first) == without_names(json.loads(json.dumps(second)))


def without_names(response: dict[str, Any]) -> Any:
    """All but ids and times, which are new each time."""
    output = [{**item, "id": "", "call_id": ""} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": output}


def test_all_that_is_asked_is_repeated_as_the_types_want_it() -> None:
    tool = {
        "type": "function",
        "name": "weigh",
        "parameters": {"type": "object"},
        "strict": True,
        "description": "d",
    }
    encoder = encoder_of(
        instructions="be brief",
        tools=[tool],
        tool_choice={"type": "function", "name": "weigh"},
        text={
            "format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}},
            "verbosity": "low",
        },
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"a": "b"},
        max_output_tokens=9,
        top_logprobs=2,
        temperature=0,
        truncation="auto",
        previous_response_id="resp_1",
    )
    [event, *_] = told(encoder.writer, [])
    response = validated(event).response
    assert response.tools[0].strict is True
    assert response.text.format.schema_ == {"type": "object"}
    assert response.tool_choice.name == "weigh"
    assert (response.temperature, response.max_output_tokens, response.top_logprobs) == (0, 9, 2)
    assert response.truncation == "disabled", "nothing is cut here, and it says so"
    assert isinstance(response.reasoning, official.Response.model_fields["reasoning"].annotation.__args__[0])


def test_a_cut_off_call_is_incomplete_and_the_one_before_it_is_not() -> None:
    batch: list[Part] = [
        ToolCallPart(0, "{}", "a", "f"),
        ToolCallPart(1, '{"x', "b", "g"),
        FinishPart("length"),
    ]
    response = told(encoder_of().writer, [batch])[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["output"][1]["arguments"] == '{"x'


def test_a_failure_ends_the_stream_with_what_was_there() -> None:
    writer = encoder_of().writer
    events = [*writer.events([TextPart("so far")]), *writer.failed("rate_limit_exceeded", "too much")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    failed = validated(json.loads(json.dumps(events[-1]))).response
    assert failed.error.code == "rate_limit_exceeded"
    assert failed.output_text == "so far"
    assert writer.events([TextPart("more")], True) == []


def test_calls_are_told_in_the_words_of_the_tools_that_were_offered() -> None:
    space = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FIND]}
    writer = encoder_of(tools=[space, {"type": "custom", "name": "patch"}]).writer
    said = json.dumps({"input": 'say "x"'})
    calls = [
        ToolCallPart(0, said[:5], id="a", name="patch"),
        ToolCallPart(0, said[5:]),
        ToolCallPart(1, "{}", id="b", name="crm__find"),
        FinishPart("tool_calls"),
    ]
    events = told(writer, [[one] for one in calls])
    for event in events:
        validated(event)
    first, second = events[-1]["response"]["output"]
    assert (first["type"], first["name"], first["input"]) == ("custom_tool_call", "patch", 'say "x"')
    assert (second["type"], second["name"], second["namespace"]) == ("function_call", "find", "crm")
    kinds = [event["type"] for event in events]
    assert kinds.count("response.custom_tool_call_input.done") == 1
    assert [one["delta"] for one in events if "custom_tool_call_input.delta" in one["type"]] == ['say "x"']


FIND = {
    "type": "function",
    "name": "find",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
