"""openai-agents: Responses, as it comes."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from contract import LONG, QUESTION, SYSTEM, Place, check, drive, refused, strangers
from openai import AsyncOpenAI
from parcel import Parcel

set_tracing_disabled(True)


@function_tool
def weigh(size: Literal["small", "large"]) -> str:
    """Weigh a parcel."""
    return f"{size}: 9 kg"


def agent_of(place: Place, tokens: int = 200, **more: Any) -> Agent:
    """A typed answer, since the runner takes none that was cut off, and the model's plain texts end nowhere else."""
    client = AsyncOpenAI(base_url=place.v1, api_key=place.key, max_retries=0, timeout=60.0)
    model = OpenAIResponsesModel(place.model, client)
    settings = ModelSettings(max_tokens=tokens, **more.pop("settings", {}))
    asked = {"output_type": Parcel, **more}
    return Agent(name="weigher", instructions=SYSTEM, model=model, model_settings=settings, **asked)


def ask(place: Place, **more: Any) -> Any:
    return asyncio.run(Runner.run(agent_of(place, **more), QUESTION))


def chat(place: Place) -> None:
    """An answer, and one that goes on from it."""
    answer = ask(place)
    again = Runner.run(agent_of(place), "And now?", previous_response_id=answer.last_response_id)
    check(isinstance(asyncio.run(again).final_output, Parcel))


def stream(place: Place) -> None:
    async def kinds() -> list[str]:
        result = Runner.run_streamed(agent_of(place), QUESTION)
        return [one.data.type async for one in result.stream_events() if one.type == "raw_response_event"]

    found = asyncio.run(kinds())
    check("response.output_text.delta" in found and found[-1] == "response.completed", found)


def tools(place: Place) -> None:
    """A call that must come, its result, and an answer to it: the runner lets go of the choice after the first."""
    answer = ask(place, settings={"tool_choice": "required"}, tools=[weigh])
    kinds = [item.type for item in answer.new_items]
    check(kinds[:2] == ["tool_call_item", "tool_call_output_item"] and answer.final_output, kinds)


def structured(place: Place) -> None:
    check(isinstance(ask(place).final_output, Parcel))


def cancelled(place: Place) -> None:
    async def left() -> None:
        result = Runner.run_streamed(agent_of(place, LONG, output_type=None), QUESTION)
        async for one in result.stream_events():
            if one.type == "raw_response_event" and one.data.type == "response.output_text.delta":
                result.cancel()

    asyncio.run(left())


if __name__ == "__main__":
    drive(
        ("openai-agents", "openai"),
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: ask(place, settings={"temperature": -1})),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded, output_type=None), tries=2),
            "cancelled": cancelled,
        },
        {"list": "it does not ask what there is"},
    )
