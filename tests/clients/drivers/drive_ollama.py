"""Ollama's Python client."""

from __future__ import annotations

from typing import Any

import ollama
from contract import LONG, QUESTION, SHORT, SYSTEM, Place, check, drive, raw, refused, strangers
from parcel import Parcel

HI = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


def weigh(size: str) -> str:
    """Weigh a parcel.

    Args:
        size: how large it is
    """
    return f"{size}: 9 kg"


def client_of(place: Place) -> ollama.Client:
    return ollama.Client(host=place.url, headers={"Authorization": f"Bearer {place.key}"}, timeout=60.0)


def ask(place: Place, **more: Any) -> Any:
    asked = {"model": place.model, "messages": HI, "options": {"num_predict": SHORT}}
    return client_of(place).chat(**{**asked, **more})


def list_models(place: Place) -> None:
    client = client_of(place)
    check(place.model in [one.model for one in client.list().models])
    check(place.model in [one.model for one in client.ps().models])
    client.show(place.model)


def chat(place: Place) -> None:
    answer = ask(place)
    check(answer.message.content and answer.done_reason == "length" and answer.eval_count == SHORT, answer)
    check(client_of(place).generate(place.model, "It weighs", options={"num_predict": SHORT}).response)


def stream(place: Place) -> None:
    lines = list(ask(place, stream=True))
    check("".join(line.message.content or "" for line in lines) and lines[-1].done, lines)
    strictly(place)


def strictly(place: Place) -> None:
    """Whole answers and every line, by the letter of the client's own types."""
    for path, kind, body in (
        ("/api/chat", ollama.ChatResponse, {"messages": HI}),
        ("/api/generate", ollama.GenerateResponse, {"prompt": "It weighs"}),
    ):
        for stream in (False, True):
            asked = {**body, "options": {"num_predict": SHORT}, "stream": stream}
            for line in raw(place, path, asked).splitlines():
                kind.model_validate_json(line, strict=True)


def tools(place: Place) -> None:
    """Tools are offered, and a round of them is told: this protocol has no way to ask for a call."""
    offered = ask(place, tools=[weigh])
    check(offered.message.content or offered.message.tool_calls, offered)
    turns = [
        *HI,
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weigh", "arguments": {"size": "small"}}}],
        },
        {"role": "tool", "tool_name": "weigh", "content": weigh("small")},
    ]
    check(ask(place, messages=turns, tools=[weigh]).eval_count > 0)


def structured(place: Place) -> None:
    answer = ask(place, format=Parcel.model_json_schema(), options={"num_predict": 200})
    Parcel.model_validate_json(answer.message.content)


def cancelled(place: Place) -> None:
    lines = ask(place, stream=True, options={"num_predict": LONG})
    next(lines)
    lines.close()


if __name__ == "__main__":
    drive(
        ("ollama",),
        {
            "list": list_models,
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(
                400, lambda: client_of(place).generate(place.model, "a", suffix="b")
            ),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded), tries=2),
            "cancelled": cancelled,
        },
    )
