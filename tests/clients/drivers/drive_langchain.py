"""LangChain: `ChatOpenAI`, as its documentation points it at a server of one's own."""

from __future__ import annotations

from typing import Any, Literal

from contract import LONG, NOBODY, QUESTION, SHORT, SYSTEM, WRONG_KEY, Place, check, drive, refused
from langchain.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from parcel import Parcel

HI: list[Any] = [SystemMessage(SYSTEM), HumanMessage(QUESTION)]


@tool
def weigh(size: Literal["small", "large"]) -> str:
    """Weigh a parcel."""
    return f"{size}: 9 kg"


def model_of(place: Place, **more: Any) -> ChatOpenAI:
    asked = {"max_tokens": SHORT, "max_retries": 0, "timeout": 60.0, **more}
    return ChatOpenAI(model=place.model, base_url=place.v1, api_key=place.key, **asked)


def chat(place: Place) -> None:
    answer = model_of(place).invoke(HI)
    check(answer.text and answer.usage_metadata["output_tokens"] == SHORT, answer)


def stream(place: Place) -> None:
    chunks = list(model_of(place, stream_usage=True).stream(HI))
    whole = sum(chunks[1:], chunks[0])
    check(whole.text and whole.usage_metadata["output_tokens"] == SHORT, whole)


def tools(place: Place) -> None:
    model = model_of(place, max_tokens=200)
    answer = model.bind_tools([weigh], tool_choice="weigh").invoke(HI)
    check(isinstance(answer, AIMessage) and len(answer.tool_calls) == 1, answer)
    result = weigh.invoke(answer.tool_calls[0])
    check(isinstance(result, ToolMessage) and "9 kg" in result.content, result)
    after = model_of(place).bind_tools([weigh]).invoke([*HI, answer, result])
    check(after.text or after.tool_calls, after)


def structured(place: Place) -> None:
    for method in ("json_schema", "function_calling"):
        model = model_of(place, max_tokens=200).with_structured_output(Parcel, method=method)
        check(isinstance(model.invoke(HI), Parcel), method)


def cancelled(place: Place) -> None:
    chunks = model_of(place, max_tokens=LONG).stream(HI)
    for chunk in chunks:
        if chunk.text:
            break
    chunks.close()


if __name__ == "__main__":
    drive(
        ("langchain", "langchain-openai", "openai"),
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: model_of(place, temperature=-1).invoke(HI)),
            "401": lambda place: refused(401, lambda: model_of(place.with_key(WRONG_KEY)).invoke(HI)),
            "404": lambda place: refused(404, lambda: model_of(place.with_model(NOBODY)).invoke(HI)),
            "429": lambda place: refused(429, lambda: model_of(place.crowded).invoke(HI), tries=2),
            "cancelled": cancelled,
        },
        {"list": "it does not ask what there is"},
    )
