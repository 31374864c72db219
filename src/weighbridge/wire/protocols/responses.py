"""OpenAI's Responses: its requests as chats. What a response is made of again is in `response_events.py`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from weighbridge.wire.ask import LONGEST_SALT, Ask, Extension, Fields
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError, openai_fields, quoted
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import chat
from weighbridge.wire.protocols.names import Names
from weighbridge.wire.protocols.openai import Positive
from weighbridge.wire.protocols.response.items import REFERENCE, Item, chat_messages, read_items
from weighbridge.wire.protocols.response.tools import FunctionTool, Offered, Tools, chosen_name, read_tools
from weighbridge.wire.protocols.response_events import ResponseHead, ResponsesEncoder

PATH = "/v1/responses"

#: OpenAI's own bounds of `metadata`.
MAX_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512

LOGPROBS = "message.output_text.logprobs"

_encode = msgspec.json.encode


class WrittenFormat(Struct):
    """How the text of an answer is to be written; a schema stands beside its name, not below it as in a chat."""

    type: Literal["text", "json_object", "json_schema"] | None = None  # None: a text
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    format: WrittenFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningWish(Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # its older name


class ToolOfChoice(Struct):
    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class ResponseStreamOptions(Struct):
    include_obfuscation: bool | None = None


class ResponsesRequest(Struct, kw_only=True):
    """A request as it is written. What only OpenAI's own machines can serve is refused, unless it says nothing."""

    model: str | None = None
    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    max_output_tokens: Positive | None = None
    max_tool_calls: Positive | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningWish | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolOfChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    cache_salt: Annotated[str, Meta(max_length=LONGEST_SALT)] | None = None
    weighbridge: Extension | None = None
    conversation: Any = None
    prompt: Any = None


#: Fields of a chat that are no part of OpenAI's Responses; engines take them in both.
_PASSED = (
    *("seed", "stop", "stop_token_ids", "top_k", "min_p", "logit_bias", "ignore_eos", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("structured_outputs", "chat_template_kwargs"),
)
#: What clients say differently in a chat, so that an error names the field that they wrote.
_names = Names(
    {
        "messages": "input",
        "messages[]": "input",  # instructions and earlier turns have moved them
        "messages[].content": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text",
        "response_format.json_schema": "text.format",
        "response_format.json_schema.schema": "text.format.schema",
        "logprobs": "top_logprobs",
        "reasoning_effort": "reasoning",
        "tools[].function": "tools[]",
        "tool_choice.function": "tool_choice",
    }
)


@dataclass(slots=True)
class ResponseRequest:
    """What was asked, and what the server adds before it is a chat: turns that it remembers."""

    id: str
    made_at: int  # Unix seconds
    written: ResponsesRequest
    items: list[Item]  # of `input`
    tools: Tools
    previous: list[Item] = field(default_factory=list)  # the turns before, as far as the server keeps them
    input: bytes = b""  # the items as JSON

    @property
    def is_remembered(self) -> bool:
        """Whether it goes on from what the server may keep."""
        return self.written.previous_response_id is not None or any(
            item["type"] == REFERENCE for item in self.items
        )

    @property
    def background(self) -> bool:
        return bool(self.written.background)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.written.include or ()) or bool(self.written.top_logprobs)

    @property
    def wants_summary(self) -> bool:
        """Whether what the model thinks goes into the summary, where clients that ask for one look."""
        reasoning = self.written.reasoning
        return reasoning is not None and bool(reasoning.summary or reasoning.generate_summary)

    def take(self, items: list[Item]) -> None:
        """Make these the items of the input."""
        self.items, self.input = items, _encode(items)

    def complete(self, ask: Ask) -> None:
        """Write the turns into the chat, now that all of them are here."""
        messages = chat_messages(self.written.instructions, [*self.previous, *self.items])
        if not messages:
            raise ApiError(400, "input: must not be empty; say something to the model", param="input")
        ask.fields["messages"] = msgspec.Raw(_encode(messages))


class ResponsesProtocol(WireProtocol):
    """Answers without a memory: a request must bring all its turns."""

    name, path = "responses", PATH
    passes_errors = False  # they name the fields of a chat

    def read(self, body: bytes) -> Ask:
        written = decode(body, ResponsesRequest)
        _refuse_what_is_not_here(written)
        items = read_items(written.input if written.input is not None else [])
        demanded = isinstance(written.tool_choice, ToolOfChoice) or written.tool_choice == "required"
        tools = read_tools(written.tools or (), not demanded)
        own = ResponseRequest(f"resp_{uuid.uuid4().hex}", int(time.time()), written, [], tools)
        own.take(items)
        ask = Ask(
            id="",
            path=chat.PATH,
            fields=_chat_fields(own, body),
            model=written.model or "",
            tenant="",
            stream=bool(written.stream) or own.background,
            wants_usage=True,
            max_tokens=written.max_output_tokens,
            extension=written.weighbridge,
            user=written.user,
            cache_salt=written.cache_salt or "",
            own=own,
        )
        if tools.spared:
            ask.notes.append(f"tools that nothing here runs are left out: {', '.join(tools.spared)}")
        if not own.is_remembered:
            own.complete(ask)
        return ask

    async def recall(self, ask: Ask, owner: str | None) -> None:
        own: ResponseRequest = ask.own
        if own.is_remembered or own.background:
            message = "this server keeps no responses; send all turns in `input`, without `background`"
            raise ApiError(400, message, param="previous_response_id")

    def encoder(self, ask: Ask) -> ResponsesEncoder:
        return response_encoder(ask)

    def error(self, error: ApiError, request: str = "") -> bytes:
        named = {"message": _names.message(error), "param": _names.param(error)}
        return _encode({"error": openai_fields(error) | named})


def response_encoder(ask: Ask, ended: Callable[[dict[str, Any]], None] | None = None) -> ResponsesEncoder:
    """The writer of the response to `ask`; `ended` hears of the response once it is complete."""
    own: ResponseRequest = ask.own
    head = ResponseHead(
        lambda: own.written.model or ask.model,
        _echo(own),
        own.wants_summary,
        own.background,
        own.tools.by_function(),
    )
    return ResponsesEncoder(head, ended)


# -- what is asked ---------------------------------------------------------------------------------------


def _refuse_what_is_not_here(written: ResponsesRequest) -> None:
    for name, remedy in (
        ("conversation", "send previous_response_id, or all turns in `input`"),
        ("prompt", "prompts are not kept here: send `instructions` and `input`"),
    ):
        if getattr(written, name) is not None:
            raise ApiError(400, f"{name}: is not taken here; {remedy}", param=name)
    metadata = written.metadata or {}
    if len(metadata) > MAX_METADATA or any(
        len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE for key, value in metadata.items()
    ):
        message = (
            f"metadata: at most {MAX_METADATA} pairs, keys of at most {LONGEST_KEY} characters and "
            f"values of at most {LONGEST_VALUE}"
        )
        raise ApiError(400, message, param="metadata")


def _chosen(own: ResponseRequest) -> tuple[list[Offered], Any]:
    """The tools that may be called, and how a chat says which must be."""
    choice, tools = own.written.tool_choice, list(own.tools.offered)
    if choice is None or isinstance(choice, str):
        return tools, choice
    if choice.type in ("function", "custom") and choice.name:
        name = chosen_name(tools, {"name": choice.name, "namespace": choice.namespace}) or choice.name
        return tools, {"type": "function", "function": {"name": name}}
    if choice.type == "allowed_tools":
        names = [one.get("name") for one in choice.tools or ()]
        if not all(isinstance(name, str) for name in names):
            raise ApiError(400, "tool_choice: each of its tools has a `name`", param="tool_choice")
        allowed = frozenset(names)
        return [tool for tool in tools if {tool.name, tool.namespace} & allowed], choice.mode or "auto"
    known = "auto, none, required, a function, a custom tool or allowed_tools"
    message = f"tool_choice: {quoted(choice.type)} is not taken here; use {known}"
    raise ApiError(400, message, param="tool_choice")


def _chat_fields(own: ResponseRequest, body: bytes) -> Fields:
    """Everything but the messages, in the words of a chat."""
    written = own.written
    tools, choice = _chosen(own)
    values: dict[str, Any] = {
        "model": written.model,
        "max_tokens": written.max_output_tokens,
        "temperature": written.temperature,
        "top_p": written.top_p,
        "response_format": _response_format(written.text),
        "reasoning_effort": written.reasoning.effort if written.reasoning is not None else None,
        "tools": [_chat_tool(tool.function) for tool in tools] or None,
        "tool_choice": choice if tools or choice not in ("auto", "none") else None,
        "parallel_tool_calls": written.parallel_tool_calls if tools else None,
        "user": written.user,
        "weighbridge": written.weighbridge,
        "cache_salt": written.cache_salt,
    }
    if own.wants_logprobs:
        values |= {"logprobs": True, "top_logprobs": written.top_logprobs or 0}
    if written.stream or own.background:
        values |= {"stream": True, "stream_options": {"include_usage": True}}
    fields = {name: msgspec.Raw(_encode(value)) for name, value in values.items() if value is not None}
    given = _decode_fields(body)
    return fields | {name: given[name] for name in _PASSED if name in given}


_decode_fields = msgspec.json.Decoder(Fields).decode


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": msgspec.to_builtins(tool)}


def _response_format(text: TextConfig | None) -> dict[str, Any] | None:
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type in (None, "text"):
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.schema is None or not wanted.name:
        raise ApiError(400, "text.format: a json_schema needs a `name` and a `schema`", param="text")
    fields = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
    fields["description"] = wanted.description
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in fields.items() if value is not None},
    }


# -- what is said of it ----------------------------------------------------------------------------------


def _echo(own: ResponseRequest) -> dict[str, Any]:
    """The fields of a response that repeat what was asked."""
    written = own.written
    reasoning = written.reasoning or ReasoningWish()
    wanted = (
        written.text.format
        if written.text is not None and written.text.format is not None
        else WrittenFormat()
    )
    return {
        "id": own.id,
        "object": "response",
        "created_at": own.made_at,
        "background": own.background,
        "instructions": written.instructions,
        "max_output_tokens": written.max_output_tokens,
        "max_tool_calls": written.max_tool_calls,
        "metadata": written.metadata or {},
        "parallel_tool_calls": written.parallel_tool_calls is not False,
        "previous_response_id": written.previous_response_id,
        "prompt_cache_key": written.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": written.safety_identifier,
        "store": bool(written.store),
        "temperature": 1.0 if written.temperature is None else written.temperature,
        "text": {
            "format": _shown_format(wanted),
            "verbosity": written.text.verbosity if written.text else None,
        },
        "tool_choice": _shown_choice(written.tool_choice),
        "tools": list(own.tools.shown),
        "top_logprobs": written.top_logprobs or 0,
        "top_p": 1.0 if written.top_p is None else written.top_p,
        "truncation": "disabled",  # nothing is cut here: what does not fit is refused
        "user": written.user,
    }


def _shown_format(wanted: WrittenFormat) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type or "text"}
    return {
        "type": wanted.type,
        "name": wanted.name,
        "description": wanted.description,
        "schema": wanted.schema,
        "strict": wanted.strict,
    }


def _shown_choice(choice: str | ToolOfChoice | None) -> Any:
    if not isinstance(choice, ToolOfChoice):
        return choice or "auto"
    if choice.type in ("function", "custom"):
        return {"type": choice.type, "name": choice.name}
    return {"type": choice.type, "mode": choice.mode or "auto", "tools": choice.tools or []}
