"""`llm`, by its Python interface: a model of one's own in extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from contract import LONG, QUESTION, SHORT, SYSTEM, Place, check, drive, refused, strangers
from parcel import Parcel

HOME = Path(os.environ["HOME"]) / "llm"
HOME.mkdir(exist_ok=True)
os.environ["LLM_USER_PATH"] = str(HOME)

import llm  # noqa: E402  it reads where its files are when it is imported


def weigh(size: str) -> str:
    """Weigh a parcel."""
    return f"{size}: 9 kg"


def model_of(place: Place) -> Any:
    entry = {
        "model_id": "here",
        "model_name": place.model,
        "api_base": place.v1,
        "api_key_name": "here",
        "supports_tools": True,
        "supports_schema": True,
    }
    (HOME / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    (HOME / "keys.json").write_text(json.dumps({"here": place.key}))
    return llm.get_model("here")


def ask(place: Place, **more: Any) -> Any:
    asked = {"system": SYSTEM, "max_tokens": SHORT, "stream": False, **more}
    response = model_of(place).prompt(QUESTION, **asked)
    response.text()
    return response


def chat(place: Place) -> None:
    response = ask(place)
    check(response.text() and response.usage().output == SHORT, response.usage())


def stream(place: Place) -> None:
    check("".join(model_of(place).prompt(QUESTION, max_tokens=SHORT)))


def tools(place: Place) -> None:
    """Tools are offered, and a result is told: there is no way to ask for a call."""
    conversation = model_of(place).conversation()
    first = conversation.prompt(QUESTION, tools=[weigh], max_tokens=SHORT, stream=False)
    first.text()
    result = llm.ToolResult(name="weigh", output="9 kg", tool_call_id="call_1")
    after = conversation.prompt("And now?", tools=[weigh], tool_results=[result], max_tokens=SHORT)
    check(after.text() or after.tool_calls(), after)


def structured(place: Place) -> None:
    Parcel.model_validate_json(ask(place, schema=Parcel, max_tokens=200).text())


def cancelled(place: Place) -> None:
    pieces = iter(model_of(place).prompt(QUESTION, max_tokens=LONG))
    next(pieces)
    pieces.close()


if __name__ == "__main__":
    drive(
        ("llm", "openai"),
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: ask(place, max_tokens=-1)),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded), tries=5),
            "cancelled": cancelled,
        },
        {"list": "it lists what its file says"},
    )
