"""What Anthropic's own client does with a server, as JSON on standard output. It runs in an environment of its own.

python anthropic_sdk.py URL MODEL KEY
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import pydantic

TOOL = {
    "name": "weigh",
    "description": "Weigh something.",
    "input_schema": {
        "type": "object",
        "properties": {"unit": {"type": "string", "enum": ["t", "kg"]}},
        "required": ["unit"],
        "additionalProperties": False,
    },
}
HI = {"role": "user", "content": "What does it weigh?"}
#: The newest client has no field for it.
COLD = {"temperature": 0}


class Answer(pydantic.BaseModel):
    """What a structured answer must be."""

    unit: str


def client_of(url: str, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=60.0)


def strictly(value: Any) -> Any:
    """The value, once it fits its own type by the letter: the client itself lets anything pass."""
    kind = type(value)
    kind.model_validate(json.loads(value.to_json()), strict=False)
    return value


def chat(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    message = strictly(
        client.messages.create(model=model, max_tokens=4, extra_body=COLD, messages=[HI], system="Be kind.")
    )
    return {"stop": message.stop_reason, "output": message.usage.output_tokens, "id": message.id}


def listed(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    names = [strictly(one).id for one in client.models.list()]
    return {"listed": model in names, "shown": strictly(client.models.retrieve(model)).id == model}


def counted(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    count = client.messages.count_tokens(model=model, messages=[HI], system="Be kind.").input_tokens
    usage = client.messages.create(model=model, max_tokens=1, messages=[HI], system="Be kind.").usage
    return {"exact": count == usage.input_tokens + (usage.cache_read_input_tokens or 0)}


def streamed(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    kinds = []
    with client.messages.stream(model=model, max_tokens=4, extra_body=COLD, messages=[HI]) as stream:
        for event in stream:
            strictly(event)
            kinds.append(event.type)
        message = strictly(stream.get_final_message())
    return {"kinds": kinds, "stop": message.stop_reason, "output": message.usage.output_tokens}


def tools(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    """A call, whole and as a stream, and its result on the way back."""
    asked = {"model": model, "max_tokens": 200, "tools": [TOOL], "messages": [HI]}
    asked["tool_choice"] = {"type": "tool", "name": "weigh"}
    message = strictly(whole(lambda: client.messages.create(**asked)))
    streamed_one = whole(lambda: final(client.messages.stream(**asked)))
    uses = [block for one in (message, streamed_one) for block in one.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": uses[0].id, "content": "3 t"}
    turns = [HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(model=model, max_tokens=4, extra_body=COLD, messages=turns)
    inputs = [use.input.get("unit") in ("t", "kg") for use in uses]
    return {"inputs": inputs, "stop": message.stop_reason, "after": after.usage.output_tokens > 0}


def final(manager: Any) -> anthropic.types.Message:
    with manager as stream:
        return stream.get_final_message()


def whole(ask: Callable[[], anthropic.types.Message]) -> anthropic.types.Message:
    """A model of random weights may write white space for long: it is asked until an answer was not cut off."""
    for _ in range(20):
        message = ask()
        if message.stop_reason != "max_tokens":
            break
    return message


def structured(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    config = {"format": {"type": "json_schema", "schema": TOOL["input_schema"]}}
    asked = {"model": model, "max_tokens": 200, "messages": [HI], "output_config": config}
    message = whole(lambda: client.messages.create(**asked))
    return {"unit": Answer.model_validate_json(message.content[0].text).unit in ("t", "kg")}


def errors(client: anthropic.Anthropic, model: str, url: str) -> dict[str, Any]:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    provoked = {
        "400": (client, {"messages": [{"role": "user", "content": [document]}]}),
        "401": (client_of(url, "wrong"), {}),
        "404": (client, {"model": "nobody"}),
    }
    found = {}
    for name, (asking, changed) in provoked.items():
        try:
            asking.messages.create(**{"model": model, "max_tokens": 4, "messages": [HI], **changed})
        except anthropic.APIStatusError as error:
            found[name] = [type(error).__name__, error.body["error"]["type"]]
    return found


def cancelled(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    """A stream that its reader leaves after the first words."""
    with client.messages.stream(model=model, max_tokens=900, messages=[HI]) as stream:
        for event in stream:
            if event.type == "text":
                break
        return {"id": stream.current_message_snapshot.id}


def main(url: str, model: str, key: str) -> None:
    client = client_of(url, key)
    done = {
        step.__name__: step(client, model)
        for step in (chat, listed, counted, streamed, tools, structured, cancelled)
    }
    print(json.dumps({**done, "errors": errors(client, model, url), "version": anthropic.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
