"""OpenAI's Python client: chat completions, which all of its majors have."""

from __future__ import annotations

import json
from typing import Any

from contract import LONG, QUESTION, SHORT, SYSTEM, Place, check, drive, refused, strangers
from openai import OpenAI
from parcel import Parcel

HI: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
PARAMETERS = {
    "type": "object",
    "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "weigh", "description": "Weigh a parcel.", "parameters": PARAMETERS, "strict": True},
}


def client_of(place: Place) -> OpenAI:
    return OpenAI(base_url=place.v1, api_key=place.key, max_retries=0, timeout=60.0)


def ask(place: Place, **more: Any) -> Any:
    return client_of(place).chat.completions.create(
        **{"model": place.model, "messages": HI, "max_tokens": SHORT, **more}
    )


def list_models(place: Place) -> None:
    client = client_of(place)
    check(place.model in [one.id for one in client.models.list()])
    check(client.models.retrieve(place.model).id == place.model)


def chat(place: Place) -> None:
    answer = ask(place)
    check(answer.choices[0].message.content, answer)
    check(answer.choices[0].finish_reason == "length", answer)
    check(answer.usage.completion_tokens == SHORT, answer.usage)


def stream(place: Place) -> None:
    chunks = list(ask(place, stream=True, stream_options={"include_usage": True}))
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    check(text, chunks)
    check(chunks[-1].usage.completion_tokens == SHORT, chunks[-1])
    check([one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length", chunks)


def tools(place: Place) -> None:
    """A call whole and as a stream, and its result on the way back."""
    forced = {"type": "function", "function": {"name": "weigh"}}
    asked = {"tools": [TOOL], "tool_choice": forced, "max_tokens": 200}
    answer = ask(place, **asked)
    [call] = answer.choices[0].message.tool_calls
    check(call.function.name == "weigh", call)
    check(json.loads(call.function.arguments)["size"] in ("small", "large"), call)
    pieces = [one.choices[0].delta.tool_calls for one in ask(place, **asked, stream=True) if one.choices]
    arguments = "".join(one[0].function.arguments or "" for one in pieces if one)
    check(json.loads(arguments)["size"] in ("small", "large"), arguments)
    turns = [
        *HI,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "9 kg"},
    ]
    after = ask(place, tools=[TOOL], messages=turns)
    check(after.choices[0].finish_reason in ("length", "stop", "tool_calls"), after)


def structured(place: Place) -> None:
    completions = getattr(client_of(place).chat.completions, "parse", None)
    completions = completions or client_of(place).beta.chat.completions.parse
    answer = completions(model=place.model, messages=HI, max_tokens=200, response_format=Parcel)
    check(isinstance(answer.choices[0].message.parsed, Parcel), answer)


def cancelled(place: Place) -> None:
    with ask(place, stream=True, max_tokens=LONG) as chunks:
        for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                break


if __name__ == "__main__":
    drive(
        ("openai",),
        {
            "list": list_models,
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
