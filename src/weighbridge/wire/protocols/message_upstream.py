"""A server behind us that speaks Anthropic's Messages: chats as it is asked them, its answers as chats. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from weighbridge.wire.errors import ApiError, error_fields, quoted
from weighbridge.wire.protocols.messages import input_of
from weighbridge.wire.sse import DONE, event_data
from weighbridge.wire.usage import read_usage, usage_fields

PATH = "/v1/messages"
#: Tokens that an answer may have where the client does not say: the API wants a number.
DEFAULT_MAX_TOKENS = 4096

_encode, _decode = msgspec.json.encode, msgspec.json.decode
Blocks = list[dict[str, Any]]

#: Fields of a chat that ask for what the API cannot do; without effect at these values.
_CANNOT: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "audio": (None,),
    "logit_bias": (None, {}),
    "echo": (None, False),
    "prompt_logprobs": (None,),
}
_AS_THEY_ARE = ("model", "top_p", "top_k", "stream")
_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


# -- requests --------------------------------------------------------------------------------------------


def message_request(chat: bytes) -> bytes:
    """A chat as a request for a message. Raises ApiError 400 naming what the API cannot do."""
    asked: dict[str, Any] = _decode(chat)
    for name, harmless in _CANNOT.items():
        if asked.get(name) not in harmless:
            raise _refusal(name, "the server behind speaks Anthropic's Messages, which cannot do it")
    system, turns = _turns(asked.get("messages") or [])
    made: dict[str, Any] = {name: asked[name] for name in _AS_THEY_ARE if asked.get(name) is not None}
    made["messages"] = turns
    made["max_tokens"] = asked.get("max_completion_tokens") or asked.get("max_tokens") or DEFAULT_MAX_TOKENS
    if system:
        made["system"] = system
    if asked.get("temperature") is not None:
        made["temperature"] = min(asked["temperature"], 1.0)  # its scale ends there
    if stop := asked.get("stop"):
        made["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    made |= _tools(asked)
    made |= _output(asked)
    thinks = (asked.get("chat_template_kwargs") or {}).get("enable_thinking")
    if thinks is not None:
        made["thinking"] = {"type": "adaptive" if thinks else "disabled"}
    return _encode(made)


def _refusal(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name}: {why}", code="unsupported_by_upstream", param=name.partition("[")[0])


def _output(asked: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    form = asked.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema = (form.get("json_schema") or {}).get("schema") or {}
        config["format"] = {"type": "json_schema", "schema": schema}
    elif form.get("type") not in (None, "text"):
        raise _refusal("response_format", "the server behind takes `json_schema` alone; give the schema")
    if asked.get("reasoning_effort") in _EFFORTS:
        config["effort"] = _EFFORTS[asked["reasoning_effort"]]
    return {"output_config": config} if config else {}


def _tools(asked: Mapping[str, Any]) -> dict[str, Any]:
    tools = asked.get("tools")
    if not tools:
        return {}
    choice, made = asked.get("tool_choice"), {"tools": [_tool(one) for one in tools]}
    told: dict[str, Any] = {"type": {"required": "any", "none": "none"}.get(str(choice), "auto")}
    if isinstance(choice, dict):
        told = {"type": "tool", "name": (choice.get("function") or {}).get("name") or ""}
    if asked.get("parallel_tool_calls") is False and told["type"] != "none":
        told["disable_parallel_tool_use"] = True
    return {**made, "tool_choice": told} if told != {"type": "auto"} else made


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict):
        raise _refusal(
            "tools", f"a tool of type {quoted(tool.get('type'))} is not known to the server behind"
        )
    made = {
        "name": function.get("name") or "",
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return made | {
        name: function[name] for name in ("description", "strict") if function.get(name) is not None
    }


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Blocks, list[dict[str, Any]]]:
    """The system's blocks, and the turns of both sides: those of one side that follow each other are one."""
    system: Blocks = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        role, place = message.get("role"), f"messages[{index}]"
        if role in ("system", "developer"):
            system += _blocks(message.get("content"), place)
            continue
        if role == "assistant":
            side, blocks = "assistant", _said(message, place)
        elif role == "tool":
            side, blocks = "user", [_result(message, place)]
        elif role == "user":
            side, blocks = "user", _blocks(message.get("content"), place)
        else:
            raise _refusal(place, f"the role {quoted(role)} is not known to the server behind")
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    return system, [turn for turn in turns if turn["content"]]


def _said(message: Mapping[str, Any], place: str) -> Blocks:
    blocks = _blocks(message.get("content") or message.get("refusal"), place)
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        called = {"id": call.get("id") or "", "name": function.get("name") or ""}
        blocks.append({"type": "tool_use", **called, "input": input_of(function.get("arguments") or "")})
    return blocks


def _result(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    content = _blocks(message.get("content"), place)
    return {"type": "tool_result", "tool_use_id": message.get("tool_call_id") or "", "content": content}


def _blocks(content: Any, place: str) -> Blocks:
    """Parts of a message. Texts without anything in them are left out: the API takes none."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return [block for part in content or () if (block := _block(part, place)) is not None]


def _block(part: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = part.get("text") if kind == "text" else part.get("refusal")
        marked = (
            {"cache_control": part["cache_control"]} if isinstance(part.get("cache_control"), dict) else {}
        )
        return {"type": "text", "text": text, **marked} if text else None
    if kind == "image_url":
        url = str((part.get("image_url") or {}).get("url") or "")
        head, comma, data = url.partition(",")
        if head.startswith("data:") and head.endswith(";base64") and comma:
            media = head.removeprefix("data:").removesuffix(";base64").partition(";")[0]
            return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}
        return {"type": "image", "source": {"type": "url", "url": url}}
    raise _refusal(place, f"parts of type {quoted(kind)} are not known to the server behind")


# -- answers ---------------------------------------------------------------------------------------------


#: What reading a message meets in one that is none.
NOT_A_MESSAGE = (
    *(msgspec.DecodeError, UnicodeDecodeError, RecursionError),
    *(KeyError, TypeError, AttributeError),
)


def chat_error(body: bytes) -> bytes:
    """An error in OpenAI's shape."""
    fields = error_fields(body)
    kind = fields.get("type")
    message = fields.get("message") or "the server behind gave no reason"
    return _encode(
        {"error": {"message": message, "type": kind or "server_error", "param": None, "code": kind}}
    )


def _finish(reason: Any) -> str:
    return _FINISH.get(str(reason), "stop")


def _stopped(told: Mapping[str, Any]) -> dict[str, Any]:
    """How an answer ended, in a choice's fields."""
    by = told.get("stop_sequence")
    return {"finish_reason": _finish(told.get("stop_reason")), **({"stop_reason": by} if by else {})}


def _usage(told: Any) -> dict[str, Any] | None:
    usage = read_usage(told)
    return usage_fields(usage) if usage is not None else None


def chat_answer(body: bytes, created: int) -> bytes:
    """A message as a chat's answer. Raises ValueError for what is no message."""
    try:
        told = _decode(body)
        blocks = told["content"]
        texts = [one["text"] for one in blocks if one.get("type") == "text"]
        thoughts = [one["thinking"] for one in blocks if one.get("type") == "thinking"]
        calls = [
            _called(one["id"], one["name"], _encode(one["input"]).decode()) for one in blocks if _is_call(one)
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(texts) if texts or not calls else None,
        }
    except NOT_A_MESSAGE as error:
        raise ValueError(f"its answer is no message ({error!r})") from error
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return _encode(
        {
            "id": told.get("id"),
            "object": "chat.completion",
            "created": created,
            "model": told.get("model"),
            "choices": [{"index": 0, "message": message, "logprobs": None, **_stopped(told)}],
            "usage": _usage(told.get("usage")),
        }
    )


def _is_call(block: Mapping[str, Any]) -> bool:
    return block.get("type") == "tool_use"


def _called(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


class MessageEvents:
    """Events of a message as chunks of a chat, in the order they come. What a later event leaves out of the usage is
    as an earlier one told."""

    def __init__(self, created: int) -> None:
        self._head: dict[str, Any] = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": created,
            "model": "",
        }
        self._usage: dict[str, Any] = {}
        self._calls: dict[int, int] = {}  # by block: which call it is

    def read(self, events: bytes) -> bytes:
        """The chunks of some whole events. Raises ValueError for what is no event of a message."""
        try:
            return b"".join([one for data in event_data(events) for one in self._chunks(_decode(data))])
        except NOT_A_MESSAGE as error:
            raise ValueError(f"an event of its stream is none of a message's ({error!r})") from error

    def _chunks(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        match event["type"]:
            case "message_start":
                message = event["message"]
                self._head |= {"id": message["id"], "model": message["model"]}
                self._usage |= message.get("usage") or {}
                yield self._chunk({"role": "assistant", "content": ""})
            case "content_block_start" if event["content_block"]["type"] == "tool_use":
                block = event["content_block"]
                place = self._calls[event["index"]] = len(self._calls)
                yield self._chunk(
                    {"tool_calls": [{"index": place, **_called(block["id"], block["name"], "")}]}
                )
            case "content_block_start" if event["content_block"].get("text"):
                yield self._chunk({"content": event["content_block"]["text"]})
            case "content_block_delta":
                yield from self._delta(event["index"], event["delta"])
            case "message_delta":
                self._usage |= {
                    name: told for name, told in (event.get("usage") or {}).items() if told is not None
                }
                if event["delta"].get("stop_reason") is not None:
                    yield self._chunk({}, **_stopped(event["delta"]))
            case "message_stop":
                if (usage := _usage(self._usage)) is not None:
                    yield _framed({**self._head, "choices": [], "usage": usage})
                yield DONE
            case "error":
                yield b"data: " + chat_error(_encode(event)) + b"\n\n"
            case "ping":
                yield b": ping\n\n"

    def _delta(self, block: int, delta: Mapping[str, Any]) -> Iterator[bytes]:
        match delta["type"]:
            case "text_delta":
                yield self._chunk({"content": delta["text"]})
            case "thinking_delta":
                yield self._chunk({"reasoning_content": delta["thinking"]})
            case "input_json_delta" if block in self._calls:
                call = {"index": self._calls[block], "function": {"arguments": delta["partial_json"]}}
                yield self._chunk({"tool_calls": [call]})

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **more}
        return _framed({**self._head, "choices": [choice]})


def _framed(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"
