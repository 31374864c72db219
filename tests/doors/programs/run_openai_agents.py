"""openai-agents as it comes, against a server: `python run_openai_agents.py URL MODEL`. Prints what came as JSON.

What a model of random weights says is held to a pattern, so that every answer is whole.
"""

import asyncio
import json
import os
import sys
from typing import Any, Literal

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from pydantic import BaseModel

url, model = sys.argv[1:]
os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
set_tracing_disabled(True)


class Size(BaseModel):
    size: Literal["small", "large"]


@function_tool
def weigh(size: Literal["small", "large"]) -> str:
    """Return the weight of a parcel of a size."""
    return f"{size}: 9 kg"


def saying(pattern: str) -> ModelSettings:
    return ModelSettings(max_tokens=100, temperature=0, extra_body={"structured_outputs": {"regex": pattern}})


def drawn(**more: Any) -> ModelSettings:
    """At random: the likeliest token of such a model may be a space, again and again."""
    return ModelSettings(max_tokens=400, temperature=1, extra_body={"seed": 1}, **more)


async def main() -> dict[str, Any]:
    plain = Agent(name="plain", instructions="Be brief.", model=model, model_settings=saying("[a-z]{4}"))
    said = await Runner.run(plain, "hello")
    went_on = await Runner.run(plain, "and now?", previous_response_id=said.last_response_id)
    history = await Runner.run(plain, [*said.to_input_list(), {"role": "user", "content": "and now?"}])
    streamed = Runner.run_streamed(plain, "hello")
    kinds = [one.data.type async for one in streamed.stream_events() if one.type == "raw_response_event"]
    forced = drawn(tool_choice="required")
    caller = Agent(
        name="caller",
        model=model,
        tools=[weigh],
        model_settings=forced,
        tool_use_behavior="stop_on_first_tool",
    )
    called = await Runner.run(caller, "weigh it")
    typed = Agent(name="typed", model=model, output_type=Size, model_settings=drawn())
    size = await Runner.run(typed, "how large?")
    return {
        "said": said.final_output,
        "streamed": streamed.final_output,
        "kinds": kinds,
        "went_on": went_on.final_output,
        "history": history.final_output,
        "called": called.final_output,
        "size": size.final_output.size,
    }


print(json.dumps(asyncio.run(main())))
