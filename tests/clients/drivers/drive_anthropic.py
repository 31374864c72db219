"""Anthropic's Python client."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pydantic
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from contract import LONG, QUESTION, SHORT, SYSTEM, Place, check, data_of, drive, raw, refused, strangers

EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)

HI: Any = {"role": "user", "content": QUESTION}
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "weigh", "description": "Weigh a parcel.", "input_schema": SCHEMA}


class Parcel(pydantic.BaseModel):
    """What a structured answer must be."""

    size: str


def client_of(place: Place) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=place.url, api_key=place.key, max_retries=0, timeout=60.0)


def asked(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": place.model, "max_tokens": SHORT, "system": SYSTEM, "messages": [HI], **more}


def ask(place: Place, **more: Any) -> Any:
    return client_of(place).messages.create(**asked(place, **more))


def list_models(place: Place) -> None:
    client = client_of(place)
    check(place.model in [one.id for one in client.models.list()])
    check(client.models.retrieve(place.model).id == place.model)


def chat(place: Place) -> None:
    message = ask(place)
    check(message.content[0].text and message.stop_reason == "max_tokens", message)
    check(message.usage.output_tokens == SHORT, message.usage)


def stream(place: Place) -> None:
    with client_of(place).messages.stream(**asked(place)) as events:
        text = "".join(events.text_stream)
        message = events.get_final_message()
    check(text == message.content[0].text and message.stop_reason == "max_tokens", message)
    strictly(place)


def strictly(place: Place) -> None:
    """Whole answers and every event, by the letter of the client's own types, with nothing in them beside."""
    plain = {"messages": [HI], "max_tokens": SHORT}
    call = {**plain, "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "any"}}
    for body in (plain, call):
        nothing_beside(Message.model_validate_json(raw(place, "/v1/messages", body), strict=True))
        for event in data_of(raw(place, "/v1/messages", {**body, "stream": True})):
            if json.loads(event)["type"] != "ping":
                nothing_beside(EVENTS.validate_json(event, strict=True))
    if place.model != "away":  # whose prompts are not sent beyond the edge to be counted
        counted = raw(place, "/v1/messages/count_tokens", {"messages": [HI]})
        nothing_beside(MessageTokensCount.model_validate_json(counted, strict=True))


def nothing_beside(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        check(not value.model_extra, value)
        for name in type(value).model_fields:
            nothing_beside(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            nothing_beside(one)


def tools(place: Place) -> None:
    forced = {"type": "tool", "name": "weigh"}
    message = ask(place, tools=[TOOL], tool_choice=forced, max_tokens=200)
    [use] = [block for block in message.content if block.type == "tool_use"]
    check(use.input["size"] in ("small", "large") and message.stop_reason == "tool_use", message)
    with client_of(place).messages.stream(
        **asked(place, tools=[TOOL], tool_choice=forced, max_tokens=200)
    ) as events:
        again = events.get_final_message()
    check(again.content[-1].input["size"] in ("small", "large"), again)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "9 kg"}
    turns = [HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    after = ask(place, tools=[TOOL], messages=turns)
    check(after.usage.output_tokens > 0, after)


def structured(place: Place) -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = ask(place, output_config=config, max_tokens=200)
    check(Parcel.model_validate_json(message.content[0].text).size in ("small", "large"), message)


def cancelled(place: Place) -> None:
    with client_of(place).messages.stream(**asked(place, max_tokens=LONG)) as events:
        for event in events:
            if event.type == "text":
                break


if __name__ == "__main__":
    drive(
        ("anthropic",),
        {
            "list": list_models,
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: ask(place, messages=[])),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded), tries=2),
            "cancelled": cancelled,
        },
    )
