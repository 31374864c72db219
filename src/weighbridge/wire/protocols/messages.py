"""Anthropic's Messages: a request is the chat that it means, and an answer's parts become blocks of content.

What a client says beyond a chat is accepted where leaving it out changes no answer (`cache_control`, `metadata`), and
is an error where it would: tools that run at the provider, documents, files.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from weighbridge.cost.usage import Usage
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError, quoted
from weighbridge.wire.events import (
    ErrorPart,
    Event,
    FinishPart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocol import Encoder, WireProtocol
from weighbridge.wire.protocols.chat import ChatProtocol
from weighbridge.wire.protocols.names import Names
from weighbridge.wire.protocols.openai import Fraction, Positive, object_of

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"

_encode = msgspec.json.encode
_chat = ChatProtocol()

_names = Names(
    {
        "stop": "stop_sequences",
        "messages[]": "messages",  # the system's turn, and results of tools, have moved them
        "response_format": "output_config.format",
        "response_format.json_schema.schema": "output_config.format.schema",
        "reasoning_effort": "output_config.effort",
        "chat_template_kwargs": "thinking",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "tools[].function": "tools[]",
        "tools[].function.parameters": "tools[].input_schema",
        "tool_choice.function": "tool_choice",
    }
)

#: A chat's `top_p` is more than 0; so little keeps the likeliest token alone, as 0 does here.
_LEAST_TOP_P = 1e-9

Blocks = list[dict[str, Any]]
Message = dict[str, Any]


class AnthropicTurn(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class AnthropicTool(Struct):
    name: Annotated[str, Meta(min_length=1)] | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class AnthropicToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class AnthropicThinking(Struct):
    type: Literal["enabled", "disabled", "adaptive"]


class AnthropicOutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class AnthropicOutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: AnthropicOutputFormat | None = None


class CountRequest(Struct, kw_only=True):
    """What a prompt consists of: all that a count of its tokens takes."""

    model: str
    messages: Annotated[list[AnthropicTurn], Meta(min_length=1)]
    system: str | Blocks | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: AnthropicThinking | None = None
    output_config: AnthropicOutputConfig | None = None
    output_format: AnthropicOutputFormat | None = None  # as it was called before `output_config`
    mcp_servers: list[Any] | None = None
    container: Any = None
    inference_geo: str | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """A request for a message. Fields that are not named here are ignored."""

    max_tokens: Positive
    stream: bool | None = None
    temperature: Fraction | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    weighbridge: dict[str, Any] | None = None


class MessagesProtocol(WireProtocol):
    name, path, passes_errors = "messages", PATH, False
    id_headers = (b"x-request-id", b"request-id")

    def read(self, body: bytes) -> Ask:
        request = decode(body, MessagesRequest)
        values = {
            **chat_of(request),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": None if request.top_p is None else max(request.top_p, _LEAST_TOP_P),
            "top_k": request.top_k,
            "stop": request.stop_sequences or None,
            "weighbridge": request.weighbridge,
        }
        if request.stream:
            values |= {"stream": True, "stream_options": {"include_usage": True}}
        return _chat.read(_encode({name: value for name, value in values.items() if value is not None}))

    def encoder(self, ask: Ask) -> MessageEncoder:
        return MessageEncoder(ask.model)

    def error(self, error: ApiError, request: str = "") -> bytes:
        fields = {"type": _kind(self.status(error)), "message": _names.message(error)}
        return _encode({"type": "error", "error": fields, "request_id": request or None})

    def status(self, error: ApiError) -> int:
        return 529 if error.status == 503 else error.status  # its own word for a server with too much to do


#: What Anthropic calls an error of a status.
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _kind(status: int) -> str:
    return _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")


# -- requests --------------------------------------------------------------------------------------------


def chat_of(request: CountRequest) -> dict[str, Any]:
    """The fields of a chat that are its prompt. Raises ApiError 400 naming what cannot be had here."""
    _check(request)
    chat: dict[str, Any] = {"model": request.model, "messages": _messages(request)}
    if request.messages[-1].role == "assistant":  # an answer that has begun goes on (prefill)
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.tools:
        chat["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    if request.tool_choice is not None and request.tools:
        chat["tool_choice"] = _tool_choice(request.tool_choice)
        if request.tool_choice.disable_parallel_tool_use:
            chat["parallel_tool_calls"] = False
    config = request.output_config or AnthropicOutputConfig()
    form = config.format or request.output_format
    if form is not None:
        schema = {"name": "answer", "schema": form.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if config.effort is not None:
        chat["reasoning_effort"] = "xhigh" if config.effort == "max" else config.effort
    if request.thinking is not None and request.thinking.type != "adaptive":  # that leaves it to the model
        chat["chat_template_kwargs"] = {"enable_thinking": request.thinking.type == "enabled"}
    return chat


def _check(request: CountRequest) -> None:
    """Raises ApiError for what would be done at the provider, or promised by it."""
    if request.mcp_servers:
        raise _refusal("mcp_servers", "this server calls no other servers; give their tools in `tools`")
    if request.container is not None:
        raise _refusal("container", "there are no containers here; leave it out")
    if request.inference_geo not in (None, "global"):
        remedy = "a request is kept near by `weighbridge: {placement: only_edge}`"
        raise _refusal("inference_geo", f"regions of a provider are not known here; {remedy}")


def _refusal(place: str, text: str) -> ApiError:
    return ApiError(400, f"{place}: {text}", param=place.partition(".")[0].partition("[")[0])


def _messages(request: CountRequest) -> list[Message]:
    messages: list[Message] = []
    system = _texts(request.system, "system")
    if system:
        messages.append({"role": "system", "content": system})
    last: AnthropicTurn | None = None
    for index, turn in enumerate(request.messages):
        place, blocks = f"messages[{index}].content", _blocks(turn.content)
        if turn.role == "system":
            messages.append({"role": "system", "content": _texts(blocks, place)})
        elif turn.role == "assistant":
            _add(messages, _assistant(blocks, place), joined=last is not None and last.role == "assistant")
        else:
            for message in _user(blocks, place):
                _add(messages, message, joined=last is not None and last.role == "user")
        last = turn
    for message in messages:
        if "reasoning_content" in message:
            message["reasoning_content"] = "\n".join(message["reasoning_content"])
    if last is not None and last.role == "assistant" and messages[-1].get("tool_calls"):
        raise _refusal("messages", "the last turn calls tools; send their results behind it")
    return messages


def _blocks(content: str | Blocks) -> Blocks:
    if not isinstance(content, str):
        return content
    return [{"type": "text", "text": content}] if content else []


def _add(messages: list[Message], message: Message, *, joined: bool) -> None:
    """Turns of one side that follow each other are one turn: many templates take no others."""
    before = messages[-1] if messages else {}
    if not joined or before.get("role") != message["role"] or message["role"] == "tool":
        messages.append(message)
        return
    parts = _blocks(before["content"])
    parts += _blocks(message["content"])  # in place: there may be hundreds of thousands of turns
    before["content"] = _content(parts)
    for name in ("reasoning_content", "tool_calls"):
        if name in message:
            before.setdefault(name, []).extend(message[name])


def _user(blocks: Blocks, place: str) -> Iterator[Message]:
    """A user's turn: what the tools said comes first, as in a chat it must."""
    parts: Blocks = []
    for index, block in enumerate(blocks):
        where = f"{place}[{index}]"
        if block.get("type") == "tool_result":
            yield _tool_result(block, where)
        else:
            parts.append(_part(block, where))
    if parts or not blocks:
        yield {"role": "user", "content": _content(parts)}


def _content(parts: Blocks) -> str | Blocks:
    """One text as a text, which every server and template takes. Several stay apart: what is looked for in a text that
    may leave is looked for over the seams of its parts, too."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts or ""


def _tool_result(block: Mapping[str, Any], place: str) -> Message:
    said = block.get("content") or ""
    blocks = _blocks(said) if isinstance(said, str | list) else [said]
    if not all(isinstance(one, dict) for one in blocks):
        raise _refusal(f"{place}.content", "must be a string or a list of blocks")
    parts = [_part(one, f"{place}.content[{index}]") for index, one in enumerate(blocks)]
    if block.get("is_error"):  # a chat has no place for it but the text
        first = parts.pop(0) if parts and parts[0]["type"] == "text" else {"type": "text", "text": ""}
        parts.insert(0, {**first, "text": f"Error: {first['text']}"})
    return {"role": "tool", "tool_call_id": _text_of(block, "tool_use_id", place), "content": _content(parts)}


def _assistant(blocks: Blocks, place: str) -> Message:
    texts: Blocks = []
    thoughts, calls = [], []
    for index, block in enumerate(blocks):
        where = f"{place}[{index}]"
        match block.get("type"):
            case "text":
                texts.append(_part(block, where))
            case "thinking":
                thoughts.append(_text_of(block, "thinking", where))
            case "redacted_thinking":
                pass  # nobody but the provider can read it
            case "tool_use":
                calls.append(_call(block, where))
            case kind:
                raise _refusal(where, f"blocks of type {quoted(kind)} are not supported here in an answer")
    message: Message = {"role": "assistant", "content": _content(texts)}
    if thoughts:  # between calls of tools, models go on from what they thought
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    function = {"name": _text_of(block, "name", place), "arguments": arguments}
    return {"id": _text_of(block, "id", place), "type": "function", "function": function}


def _part(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A block of a user's turn, or of what a tool said."""
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": _text_of(block, "text", place)}
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _image(block.get("source"), f"{place}.source")}}
    remedy = "send its text in a block of type 'text'" if kind in ("document", "search_result") else ""
    remedy = remedy or "send 'text', 'image' or 'tool_result'"
    raise _refusal(place, f"blocks of type {quoted(kind)} are not supported here; {remedy}")


def _image(source: Any, place: str) -> str:
    if isinstance(source, dict) and source.get("type") == "url":
        return _text_of(source, "url", place)
    if isinstance(source, dict) and source.get("type") == "base64":
        return f"data:{_text_of(source, 'media_type', place)};base64,{_text_of(source, 'data', place)}"
    raise _refusal(place, "files are not kept here; give the picture itself as 'base64', or its 'url'")


def _texts(content: str | Blocks | None, place: str) -> str | Blocks:
    """A text in one or several blocks; nothing else is taken there."""
    blocks = _blocks(content) if content else []
    for index, block in enumerate(blocks):
        if block.get("type") != "text":
            raise _refusal(f"{place}[{index}]", f"must be of type 'text', not {quoted(block.get('type'))}")
    return _content([_part(block, f"{place}[{index}]") for index, block in enumerate(blocks)])


def _text_of(block: Mapping[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise _refusal(f"{place}.{name}", "is required and must be a string")
    return value


def _tool(tool: AnthropicTool, place: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        remedy = "describe it with `name` and `input_schema`, and run it in the client"
        raise _refusal(place, f"tools of type {quoted(tool.type)} are the provider's own; {remedy}")
    if not tool.name or tool.input_schema is None:
        raise _refusal(place, "a tool has a `name` and an `input_schema`")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: AnthropicToolChoice) -> Any:
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if not choice.name:
        raise _refusal("tool_choice.name", "is required where `type` is 'tool'")
    return {"type": "function", "function": {"name": choice.name}}


# -- answers ---------------------------------------------------------------------------------------------

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"


def _usage(usage: Usage) -> dict[str, int]:
    """Input is counted in three parts: read from a cache, written to one, and neither."""
    cached, written = usage.cached_tokens, usage.written_tokens
    return {
        "input_tokens": max(usage.prompt_tokens - cached - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.output_tokens,
    }


class MessageEncoder(Encoder):
    """Writes a message, whole or as events. Blocks follow each other: a new one closes the one before."""

    keep_alive = _event("ping")

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"msg_{uuid.uuid4().hex}"
        self._weighed = Usage(0, 0)  # until the side that answers has counted
        self._usage: Usage | None = None
        self._finish: FinishPart | None = None
        self._started = self._failed = False
        self._open: tuple[type[Part], int] | None = None  # the kind of the open block, and of calls which
        self._blocks = 0
        self._pieces = 0  # of content: what stands for a count where nobody counts
        self._calls: dict[int, _StreamedCall] = {}

    def begin(self, ticket: Ticket) -> None:
        self._id = f"msg_{ticket.id}"
        self._model = self._model or ticket.model
        self._weighed = Usage(ticket.prompt_tokens, 0)

    def event(self, event: Event) -> bytes:
        parts = event.parts
        if not parts and not event.last:
            return b""
        out = [] if self._started else [self._start()]
        for part in parts:
            if not self._failed:
                out += self._written(part)
        if event.last and not self._failed:
            out.append(self.end())
        return b"".join(out)

    def end(self) -> bytes:
        begin = b"" if self._started else self._start()
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stopped_by}
        usage = _usage(self._usage or Usage(self._weighed.prompt_tokens, self._pieces))
        ending = [*self._close(), _event("message_delta", delta=delta, usage=usage), _event("message_stop")]
        return begin + b"".join(ending)

    def failure(self, error: ApiError) -> bytes:
        return _event(
            "error", error={"type": _kind(_protocol.status(error)), "message": _names.message(error)}
        )

    def late(self, answer: WholeAnswer) -> bytes:
        return self.event(Event(answer.body, answer.parse, last=True))

    def whole(self, answer: WholeAnswer) -> bytes:
        texts: dict[type[Part], str] = {}
        calls: list[ToolCallPart] = []
        for part in answer.parse(answer.body):
            if isinstance(part, UsagePart):
                self._usage = part.usage
            elif isinstance(part, ErrorPart) or part.choice:
                continue
            elif isinstance(part, FinishPart):
                self._finish = part
            elif isinstance(part, ToolCallPart):
                calls.append(part)
            else:
                kind = ReasoningPart if isinstance(part, ReasoningPart) else TextPart
                texts[kind] = texts.get(kind, "") + part.text
        content: Blocks = []
        if ReasoningPart in texts:
            content.append({"type": "thinking", "thinking": texts[ReasoningPart], "signature": ""})
        if TextPart in texts:
            content.append({"type": "text", "text": texts[TextPart]})
        content += [_tool_use(part.id, part.name, input_of(part.arguments)) for part in calls]
        self._calls = {part.index: _StreamedCall(part.id, part.name) for part in calls}
        return _encode(self._message(content, self._usage or self._weighed, self._stop_reason))

    @property
    def _stopped_by(self) -> str | None:
        return (self._finish.stopped_by or None) if self._finish is not None else None

    @property
    def _stop_reason(self) -> str:
        reason = self._finish.reason if self._finish is not None else "stop"
        if self._stopped_by is not None:
            return "stop_sequence"
        if reason == "stop" and self._calls:  # as some servers end a call
            return "tool_use"
        return _STOP_REASONS.get(reason, "end_turn")

    def _message(self, content: Blocks, usage: Usage, stop_reason: str | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": self._stopped_by,
            "usage": _usage(usage),
        }

    def _start(self) -> bytes:
        self._started = True
        return _event("message_start", message=self._message([], self._weighed, None))

    def _written(self, part: Part) -> list[bytes]:
        if isinstance(part, ErrorPart):
            self._failed = True
            return [self.failure(ApiError(500, part.message, kind=part.kind, code=part.code))]
        if isinstance(part, UsagePart):
            self._usage = part.usage
        elif part.choice:  # a message is one answer
            return []
        elif isinstance(part, FinishPart):
            self._finish = part
        elif isinstance(part, ToolCallPart):
            return self._call(part)
        elif part.text:
            self._pieces += 1
            return self._said(part)
        return []

    def _said(self, part: TextPart | ReasoningPart | RefusalPart) -> list[bytes]:
        if isinstance(part, ReasoningPart):
            opening = self._opened((ReasoningPart, 0), {"type": "thinking", "thinking": "", "signature": ""})
            delta = {"type": "thinking_delta", "thinking": part.text}
        else:
            opening = self._opened((TextPart, 0), {"type": "text", "text": ""})
            delta = {"type": "text_delta", "text": part.text}
        return [*opening, self._delta(self._blocks - 1, delta)]

    def _call(self, part: ToolCallPart) -> list[bytes]:
        call = self._calls.setdefault(part.index, _StreamedCall())
        call.id, call.name = call.id or part.id, call.name or part.name
        self._pieces += 1
        arguments, call.held = call.held + part.arguments, ""
        if not call.name:  # a block says at its beginning what is called
            call.held = arguments
            return []
        out: list[bytes] = []
        if call.block is None:
            out = self._opened((ToolCallPart, part.index), _tool_use(call.id, call.name, {}))
            call.block = self._blocks - 1
        if arguments:
            out.append(self._delta(call.block, {"type": "input_json_delta", "partial_json": arguments}))
        return out

    def _opened(self, key: tuple[type[Part], int], block: dict[str, Any]) -> list[bytes]:
        """What has to come before content of a block, when another one is open."""
        if self._open == key:
            return []
        closing = self._close()
        self._open = key
        self._blocks += 1
        return [*closing, _event("content_block_start", index=self._blocks - 1, content_block=block)]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._blocks - 1)]

    def _delta(self, block: int, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=block, delta=delta)


class _StreamedCall:
    """A tool call on its way: its block, once it has one, and arguments that came before its name."""

    __slots__ = ("block", "held", "id", "name")

    def __init__(self, id: str = "", name: str = "") -> None:
        self.id, self.name = id, name
        self.held = ""
        self.block: int | None = None


def _tool_use(id: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": id or f"toolu_{uuid.uuid4().hex}", "name": name, "input": arguments}


def input_of(arguments: str) -> dict[str, Any]:
    """Arguments of a call as the object that a block holds; what is none, as it was written, under Anthropic's name for
    it."""
    value = object_of(arguments)
    return {"INVALID_JSON": arguments} if value is None else value


_protocol = MessagesProtocol()


def model_info(model: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `/v1/models` as Anthropic's clients read it. When a model came out nobody here knows: the time is
    when it began to be served."""
    created = datetime.fromtimestamp(model.get("created") or 0, UTC)
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": model.get("max_model_len"),
    }


def listed(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of `/v1/models` as Anthropic's clients read them."""
    data = [model_info(model) for model in models]
    ends = [one["id"] for one in data[:1] + data[-1:]] or [None, None]
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[-1]}
