"""Holds what a scripted server was asked and said to the types of Anthropic's own SDK. JSON comes on standard input."""

import json
import sys

from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from pydantic import TypeAdapter

told = json.load(sys.stdin)
events, whole = TypeAdapter(RawMessageStreamEvent), TypeAdapter(MessageCreateParamsNonStreaming)
streamed = TypeAdapter(MessageCreateParamsStreaming)


def plain(value):
    """What pydantic keeps of a request, without what it reads lazily."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return (
        value if isinstance(value, str | bytes | int | float | bool | None) else [plain(one) for one in value]
    )


kept = []
for asked in told["asked"]:
    read = (streamed if asked.get("stream") else whole).validate_python(asked)
    kept += [plain(read) == asked]
for event in told["events"]:
    if event["type"] not in ("ping", "error"):
        events.validate_python(event, strict=True)
for message in told["messages"]:
    Message.model_validate(message, strict=True)
print(json.dumps({"kept": kept, "events": len(told["events"]), "messages": len(told["messages"])}))
