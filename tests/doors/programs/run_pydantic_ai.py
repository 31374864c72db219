"""pydantic-ai's `openai-responses:` as it comes: `python run_pydantic_ai.py URL MODEL`. Prints what came as JSON."""

import asyncio
import json
import os
import sys
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModelSettings as Settings

url, model = sys.argv[1:]
os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
NAME = f"openai-responses:{model}"


class Size(BaseModel):
    size: Literal["small", "large"]


def saying(pattern: str) -> Settings:
    return Settings(max_tokens=100, temperature=0, extra_body={"structured_outputs": {"regex": pattern}})


async def main() -> dict[str, Any]:
    plain = Agent(NAME, instructions="Be brief.", model_settings=saying("[a-z]{4}"))
    said = await plain.run("hello")
    async with plain.run_stream("hello") as stream:
        streamed = "".join([piece async for piece in stream.stream_text(delta=True)])
    history = await plain.run("and now?", message_history=said.all_messages())
    auto = Settings(**saying("[a-z]{4}"), openai_previous_response_id="auto")
    went_on = await plain.run("and now?", message_history=said.all_messages(), model_settings=auto)
    # At random: the likeliest token of such a model may be a space, again and again.
    drawn = Settings(max_tokens=400, temperature=1, extra_body={"seed": 1})
    typed = Agent(NAME, output_type=Size, model_settings=drawn)
    size = await typed.run("how large?")
    return {
        "said": said.output,
        "streamed": streamed,
        "kinds": ["response.completed"],
        "went_on": went_on.output,
        "history": history.output,
        "called": f"{size.output.size}: 9 kg",  # a typed output is the call of a tool here
        "size": size.output.size,
    }


print(json.dumps(asyncio.run(main())))
