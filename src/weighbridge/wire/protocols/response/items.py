"""The items of OpenAI's Responses: what a client sends, as the API keeps it and as messages of a chat. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weighbridge.wire.errors import ApiError, quoted
from weighbridge.wire.protocols.response.tools import custom_arguments, joined

#: An item as the API shows it: a message, a function_call, a function_call_output or reasoning.
Item = dict[str, Any]
Message = dict[str, Any]

_ROLES = ("user", "system", "developer", "assistant")
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
#: Outputs of calls, and calls.
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_CALLS = ("function_call", "custom_tool_call")
#: Kinds of items that stand for another one, which the server may remember.
REFERENCE = "item_reference"


def new_id(kind: str) -> str:
    """A new name for an item of a kind."""
    return f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"


def wrong(where: str, problem: str) -> ApiError:
    """An error in the input, naming the place."""
    return ApiError(400, f"{where}: {problem}", param="input")


def read_items(given: str | Sequence[Any]) -> list[Item]:
    """The items of `input`, checked and complete. Raises ApiError naming the one that is wrong.

    References stay what they are: `{"type": "item_reference", "id": ...}`.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_read(item, f"input[{index}]") for index, item in enumerate(given)]


def _read(item: Any, where: str) -> Item:
    if not isinstance(item, dict):
        raise wrong(where, "must be an object")
    kind = item.get("type") or ("message" if "role" in item else REFERENCE if "id" in item else None)
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        known = ", ".join(_READERS)
        raise wrong(f"{where}.type", f"{quoted(kind)} items are not taken here; use {known}")
    return reader(item, where)


def _id(item: Mapping[str, Any], kind: str, where: str) -> str:
    return _text(item, "id", where) or new_id(kind)


def _text(item: Mapping[str, Any], name: str, where: str, *, needed: bool = False) -> str:
    value = item.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value and name != "arguments"):
        raise wrong(f"{where}.{name}", "must be a string" + (", and is required" if value is None else ""))
    return value


def _message(item: Mapping[str, Any], where: str) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    if isinstance(content, str):
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    if not isinstance(content, list):
        raise wrong(f"{where}.content", "must be a string or a list of parts")
    read = _said if role == "assistant" else _part
    parts = [read(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    made = {"id": _id(item, "message", where), "type": "message", "status": "completed", "role": role}
    return {**made, "content": parts}


def _part(part: Any, where: str) -> dict[str, Any]:
    """A part of what is put in: a text or an image."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "text", "output_text"):
        return {"type": "input_text", "text": _text(part, "text", where, needed="text" not in part)}
    if kind == "input_image":
        url = part.get("image_url")
        if not isinstance(url, str) or not url:
            raise wrong(
                f"{where}.image_url", "give the image as a URL or a data URL; files are not kept here"
            )
        detail = part.get("detail") or "auto"
        if detail not in ("auto", "low", "high", "original"):
            raise wrong(f"{where}.detail", "must be auto, low or high")
        return {"type": "input_image", "image_url": url, "detail": detail}
    if kind == "input_file":
        raise wrong(where, "files are not taken here; put their text into an input_text part")
    raise wrong(f"{where}.type", f"{quoted(kind)} parts are not taken here; use input_text or input_image")


def _said(part: Any, where: str) -> dict[str, Any]:
    """A part of what the model has said before."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("output_text", "input_text", "text"):
        text = _text(part, "text", where, needed="text" not in part)
        return {"type": "output_text", "text": text, "annotations": []}
    if kind == "refusal":
        return {"type": "refusal", "refusal": _text(part, "refusal", where)}
    raise wrong(f"{where}.type", f"{quoted(kind)} parts are not taken here; use output_text or refusal")


def _call(item: Mapping[str, Any], where: str, kind: str = "function_call", said: str = "arguments") -> Item:
    """A call; what it says is JSON, or any text."""
    space = _text(item, "namespace", where)
    return {
        "id": _id(item, kind, where),
        "type": kind,
        "status": "completed",
        "call_id": _text(item, "call_id", where, needed=True),
        "name": _text(item, "name", where, needed=True),
        **({"namespace": space} if space else {}),
        said: _text(item, said, where, needed=said not in item),
    }


def _custom_call(item: Mapping[str, Any], where: str) -> Item:
    return _call(item, where, "custom_tool_call", "input")


def _custom_output(item: Mapping[str, Any], where: str) -> Item:
    return _output(item, where, "custom_tool_call_output")


def _output(item: Mapping[str, Any], where: str, kind: str = "function_call_output") -> Item:
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(part, f"{where}.output[{index}]") for index, part in enumerate(output)]
    elif not isinstance(output, str):
        raise wrong(f"{where}.output", "must be a string or a list of parts")
    return {
        "id": _id(item, kind, where),
        "type": kind,
        "status": "completed",
        "call_id": _text(item, "call_id", where, needed=True),
        "output": output,
    }


def _reasoning(item: Mapping[str, Any], where: str) -> Item:
    made: Item = {"id": _id(item, "reasoning", where), "type": "reasoning"}
    for name, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        parts = item.get(name) or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise wrong(f"{where}.{name}", "must be a list of parts")
        texts = [_text(part, "text", f"{where}.{name}[{index}]") for index, part in enumerate(parts)]
        made[name] = [{"type": kind, "text": text} for text in texts]
    return made


def _reference(item: Mapping[str, Any], where: str) -> Item:
    return {"type": REFERENCE, "id": _text(item, "id", where, needed=True)}


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Item]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _custom_output,
    "reasoning": _reasoning,
    REFERENCE: _reference,
}


# -- as a chat -------------------------------------------------------------------------------------------


def chat_messages(instructions: str | None, items: Iterable[Item]) -> list[Message]:
    """The items as a chat has them: calls and thoughts are parts of what the assistant said.

    Between two messages of others everything of the assistant is one message, as chat templates want it.
    """
    messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    turn: Message | None = None  # of the assistant, to which more may belong
    for item in items:
        if item["type"] in _OUTPUTS:
            turn = None
            output = _chat_content(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
        elif item["type"] == "message" and item["role"] != "assistant":
            turn = None
            messages.append({"role": item["role"], "content": _chat_content(item["content"])})
        else:
            if turn is None or not _goes_on(turn, item):
                turn = {"role": "assistant", "content": []}
                messages.append(turn)
            _add(turn, item)
    return [_joined(message) if message["role"] == "assistant" else message for message in messages]


def _goes_on(turn: Message, item: Item) -> bool:
    """Whether an item belongs to a message of the assistant that has begun: nothing is said behind a call."""
    if item["type"] in _CALLS:
        return True
    return not turn.get("tool_calls") and not (item["type"] == "reasoning" and turn["content"])


def _add(turn: Message, item: Item) -> None:
    if item["type"] in _CALLS:
        custom = item["type"] == "custom_tool_call"
        arguments = custom_arguments(item["input"]) if custom else item["arguments"]
        function = {"name": joined(item.get("namespace"), item["name"]), "arguments": arguments}
        call = {"id": item["call_id"], "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)
    elif item["type"] == "reasoning":
        _gather(turn, "reasoning_content", item["content"] or item["summary"], "text")
    else:
        _gather(turn, "content", item["content"], "text")
        _gather(turn, "refusal", item["content"], "refusal")


def _gather(turn: Message, field: str, parts: Sequence[Mapping[str, Any]], name: str) -> None:
    """Put the texts of parts by, to be joined once: items of one turn may be hundreds of thousands."""
    if texts := [part[name] for part in parts if part.get(name)]:
        turn.setdefault(field, []).extend(texts)


def _joined(turn: Message) -> Message:
    """A message of the assistant with each of its texts in one piece."""
    texts = ("content", "reasoning_content", "refusal")
    return {name: "".join(value) if name in texts else value for name, value in turn.items()}


def _chat_content(parts: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as a string, which every template and server takes; anything else as parts."""
    if isinstance(parts, str):
        return parts
    if len(parts) == 1 and parts[0]["type"] == "input_text":
        return str(parts[0]["text"])
    return [_chat_part(part) for part in parts]


def _chat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}
    return {"type": "text", "text": part["text"]}
