"""instructor over OpenAI's client: typed answers, by calls of tools and by schemas."""

from __future__ import annotations

from typing import Any

import instructor
from contract import LONG, QUESTION, SYSTEM, Place, check, drive, refused, strangers
from openai import OpenAI
from parcel import Parcel

HI: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


def client_of(place: Place, mode: instructor.Mode = instructor.Mode.TOOLS) -> instructor.Instructor:
    client = OpenAI(base_url=place.v1, api_key=place.key, max_retries=0, timeout=60.0)
    return instructor.from_openai(client, mode=mode)


def ask(place: Place, mode: instructor.Mode = instructor.Mode.TOOLS, **more: Any) -> Any:
    asked = {"model": place.model, "messages": HI, "max_tokens": 200, "response_model": Parcel}
    return client_of(place, mode).chat.completions.create(**{**asked, **more}, max_retries=1)


def chat(place: Place) -> None:
    answer = ask(place, response_model=None)
    check(answer.choices[0].message.content, answer)


def stream(place: Place) -> None:
    client = client_of(place)
    parts = list(
        client.chat.completions.create_partial(
            model=place.model, messages=HI, max_tokens=200, response_model=Parcel
        )
    )
    check(parts[-1].size in ("small", "large") and parts[-1].heavy in (True, False), parts)


def tools(place: Place) -> None:
    check(isinstance(ask(place, instructor.Mode.TOOLS), Parcel))


def structured(place: Place) -> None:
    check(isinstance(ask(place, instructor.Mode.JSON_SCHEMA), Parcel))


def cancelled(place: Place) -> None:
    with ask(place, response_model=None, stream=True, max_tokens=LONG) as chunks:
        for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                break


if __name__ == "__main__":
    drive(
        ("instructor", "openai"),
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: ask(place, temperature=-1)),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded, response_model=None), tries=2),
            "cancelled": cancelled,
        },
        {"list": "it does not ask what there is"},
    )
