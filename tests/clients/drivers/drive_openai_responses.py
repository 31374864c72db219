"""OpenAI's Python client: the Responses API."""

from __future__ import annotations

import json
from typing import Any

from contract import LONG, QUESTION, SHORT, SYSTEM, Place, check, drive, refused, strangers
from openai import OpenAI
from parcel import Parcel

TOOL: Any = {
    "type": "function",
    "name": "weigh",
    "description": "Weigh a parcel.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
        "required": ["size"],
        "additionalProperties": False,
    },
}
LEAST = 16  # what the API takes as the least


def client_of(place: Place) -> OpenAI:
    return OpenAI(base_url=place.v1, api_key=place.key, max_retries=0, timeout=60.0)


def ask(place: Place, **more: Any) -> Any:
    asked = {"model": place.model, "instructions": SYSTEM, "input": QUESTION, "max_output_tokens": LEAST}
    return client_of(place).responses.create(**{**asked, **more})


def chat(place: Place) -> None:
    """An answer, one that goes on from it, and what is kept of both."""
    answer = ask(place)
    check(answer.output_text and answer.usage.output_tokens == LEAST > SHORT, answer)
    check(answer.incomplete_details.reason == "max_output_tokens", answer)
    after = ask(place, previous_response_id=answer.id, input="And now?")
    check(after.usage.input_tokens > answer.usage.input_tokens, (after.usage, answer.usage))
    client = client_of(place)
    check(client.responses.retrieve(after.id).output_text == after.output_text)
    items = list(client.responses.input_items.list(after.id))
    check("And now?" in [one.content[0].text for one in items if one.type == "message"], items)
    client.responses.delete(answer.id)


def stream(place: Place) -> None:
    """One that is cut off, and one that is whole, of which the client makes a response again."""
    client = client_of(place)
    asked = {"model": place.model, "input": QUESTION}
    with client.responses.stream(**asked, max_output_tokens=LEAST) as events:
        kinds = [event.type for event in events]
    check(kinds[0] == "response.created" and kinds[-1] == "response.incomplete", kinds)
    check("response.output_text.delta" in kinds, kinds)
    with client.responses.stream(**asked, max_output_tokens=200, text_format=Parcel) as events:
        final = events.get_final_response()
    check(isinstance(final.output_parsed, Parcel), final)


def tools(place: Place) -> None:
    answer = ask(place, tools=[TOOL], tool_choice="required", max_output_tokens=200)
    [call] = [one for one in answer.output if one.type == "function_call"]
    check(json.loads(call.arguments)["size"] in ("small", "large"), call)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "9 kg"}
    after = ask(place, previous_response_id=answer.id, input=[result], tools=[TOOL])
    check(after.output, after)


def structured(place: Place) -> None:
    parsed = client_of(place).responses.parse(
        model=place.model, input=QUESTION, max_output_tokens=200, text_format=Parcel
    )
    check(isinstance(parsed.output_parsed, Parcel), parsed)


def cancelled(place: Place) -> None:
    asked = {"model": place.model, "input": QUESTION, "max_output_tokens": LONG}
    with client_of(place).responses.stream(**asked) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                break


if __name__ == "__main__":
    drive(
        ("openai",),
        {
            "list": lambda place: check(place.model in [one.id for one in client_of(place).models.list()]),
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: ask(place, temperature=-1)),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded), tries=2),
            "cancelled": cancelled,
        },
    )
