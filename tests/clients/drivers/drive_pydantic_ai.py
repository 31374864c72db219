"""pydantic-ai: chat completions; its Responses are in `tests/doors/programs`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal

from contract import LONG, QUESTION, SHORT, SYSTEM, Place, check, drive, refused, strangers
from openai import AsyncOpenAI
from parcel import Parcel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent_of(place: Place, **more: Any) -> Agent[None, Any]:
    client = AsyncOpenAI(base_url=place.v1, api_key=place.key, max_retries=0, timeout=60.0)
    model = OpenAIChatModel(place.model, provider=OpenAIProvider(openai_client=client))
    return Agent(model, instructions=SYSTEM, retries=5, **more)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def ask(place: Place, **settings: Any) -> Any:
    return run(agent_of(place).run(QUESTION, model_settings={"max_tokens": SHORT, **settings}))


def chat(place: Place) -> None:
    answer = ask(place)
    check(answer.output, answer)


def stream(place: Place) -> None:
    async def streamed() -> str:
        async with agent_of(place).run_stream(QUESTION, model_settings={"max_tokens": SHORT}) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    check(run(streamed()))


def tools(place: Place) -> None:
    """A typed answer is the call of a tool here, so a call is asked for in every turn: of one of the two."""
    called: list[str] = []

    def weigh(size: Literal["small", "large"]) -> str:
        """Weigh a parcel."""
        called.append(size)
        return f"{size}: 9 kg"

    for _ in range(20):
        answer = run(
            agent_of(place, tools=[weigh], output_type=Parcel).run(
                QUESTION, model_settings={"max_tokens": 300}
            )
        )
        check(isinstance(answer.output, Parcel), answer)
        if called:
            return
    check(called, "the tool was never called")


def structured(place: Place) -> None:
    answer = run(agent_of(place, output_type=Parcel).run(QUESTION, model_settings={"max_tokens": 200}))
    check(isinstance(answer.output, Parcel), answer)


def cancelled(place: Place) -> None:
    async def left() -> None:
        async with agent_of(place).run_stream(QUESTION, model_settings={"max_tokens": LONG}) as result:
            async for piece in result.stream_text(delta=True):
                if piece:
                    await result.cancel() if hasattr(result, "cancel") else None
                    break

    run(left())


if __name__ == "__main__":
    drive(
        ("pydantic-ai-slim", "openai"),
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(400, lambda: ask(place, temperature=-1)),
            **strangers(ask),
            "429": lambda place: refused(429, lambda: ask(place.crowded), tries=2),
            "cancelled": cancelled,
        },
        {"list": "it does not ask what there is"},
    )
