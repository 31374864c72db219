"""What a response of OpenAI's Responses is made of, as events and in one piece, out of the common parts of an answer.

response.created, response.in_progress
  response.output_item.added                      reasoning, a message, or a call
    response.content_part.added                   a text, a refusal, or a thought
      response.output_text.delta ...
      response.output_text.done
    response.content_part.done
  response.output_item.done
response.completed                                or incomplete, or failed
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.wire.errors import ApiError
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
from weighbridge.wire.protocol import Encoder
from weighbridge.wire.protocols.response.items import Item, new_id
from weighbridge.wire.protocols.response.tools import Offered, custom_input

_encode = msgspec.json.encode

#: Why an answer is not complete, by what a chat says of its end.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Status(StrEnum):
    """What has become of a response."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What is known of a response before anything of it is there. `model` is asked when it is needed."""

    model: Callable[[], str]
    echo: Mapping[str, Any]
    summarises: bool = False  # thoughts go into the summary
    background: bool = False
    tools: Mapping[str, Offered] = field(default_factory=dict)  # by what they are called in a chat


@dataclass(slots=True)
class _OpenItem:
    """An item that is being written. `texts`: pieces of the part that is open, or of a call's arguments."""

    index: int
    item: Item
    call: int = -1  # which call of the answer it is
    part: str = ""  # the kind of the part that is open
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ResponseWriter:
    """Makes the events of one response, and the response itself, out of parts. Each is told once and in order."""

    def __init__(self, head: ResponseHead, ended: Callable[[dict[str, Any]], None] | None = None) -> None:
        """`ended` hears of the response once there is nothing more to come."""
        self._head = head
        self._ended = ended
        self._output: list[Item] = []
        self._open: list[_OpenItem] = []  # a message or reasoning alone, or calls side by side
        self._reason = ""
        self._usage: Usage | None = None
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self.status = Status.QUEUED if head.background else Status.IN_PROGRESS
        self.begun = False
        self.over = False
        self.response: dict[str, Any] = {
            **head.echo,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }

    def events(self, parts: Sequence[Part], last: bool = False) -> list[dict[str, Any]]:
        """What is new now that `parts` have come; `last`: nothing follows them."""
        if not self.over:
            self.begin()
            self._proceed()
            for part in parts:
                self._add(part)
            if last and not self.over:
                self._finish()
        return self._taken()

    def queued(self) -> list[dict[str, Any]]:
        """What there is to tell before the first part."""
        self.begin()
        return self._taken()

    def failed(self, code: str | None, message: str, param: str | None = None) -> list[dict[str, Any]]:
        """The end of a response that cannot go on."""
        if not self.over:
            self.begin()
            self._fail(code, message, param)
        return self._taken()

    def cancelled(self) -> list[dict[str, Any]]:
        """The end of a response that is wanted no more."""
        if not self.over:
            self.begin()
            self._close_all(complete=False)
            self._end(Status.CANCELLED, "response.incomplete")
        return self._taken()

    def begin(self) -> None:
        if self.begun:
            return
        self.begun = True
        self._tell("response.created", response=self.snapshot())
        if self.status is Status.QUEUED:
            self._tell("response.queued", response=self.snapshot())
        else:
            self._tell("response.in_progress", response=self.snapshot())

    def snapshot(self) -> dict[str, Any]:
        """The response as it is now; what is still being written is not in it."""
        return {
            **self.response,
            "model": self._head.model(),
            "status": str(self.status),
            "output": list(self._output),
        }

    def _proceed(self) -> None:
        if self.status is Status.QUEUED:
            self.status = Status.IN_PROGRESS
            self._tell("response.in_progress", response=self.snapshot())

    def _taken(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def _tell(self, kind: str, **fields: Any) -> None:
        self._events.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1

    # -- parts -----------------------------------------------------------------------------------------

    def _add(self, part: Part) -> None:
        if self.over:
            return
        if isinstance(part, TextPart):
            self._say(part.text, part.logprobs)
        elif isinstance(part, RefusalPart):
            self._refuse(part.text)
        elif isinstance(part, ReasoningPart):
            self._think(part.text)
        elif isinstance(part, ToolCallPart):
            self._call(part)
        elif isinstance(part, FinishPart):
            self._reason = part.reason
        elif isinstance(part, UsagePart):
            self._usage = part.usage
        elif isinstance(part, ErrorPart):
            self._fail(part.code, part.message)

    def _say(self, text: str, logprobs: Sequence[Mapping[str, Any]]) -> None:
        one = self._writing("message", "output_text", {"text": "", "annotations": [], "logprobs": []})
        told = [_logprob(each) for each in logprobs]
        one.texts.append(text)
        one.logprobs += told
        self._tell("response.output_text.delta", **_at(one), delta=text, logprobs=told)

    def _refuse(self, text: str) -> None:
        one = self._writing("message", "refusal", {"refusal": ""})
        one.texts.append(text)
        self._tell("response.refusal.delta", **_at(one), delta=text)

    def _think(self, text: str) -> None:
        if self._head.summarises:
            one = self._writing("reasoning", "summary_text", {"text": ""})
            self._tell("response.reasoning_summary_text.delta", **_in_summary(one), delta=text)
        else:
            one = self._writing("reasoning", "reasoning_text", {"text": ""})
            self._tell("response.reasoning_text.delta", **_at(one), delta=text)
        one.texts.append(text)

    def _call(self, part: ToolCallPart) -> None:
        one = next((one for one in self._open if one.call == part.index), None)
        if one is None:
            if any(one.call < 0 for one in self._open):
                self._close_all()
            call_id = part.id or f"call_{uuid.uuid4().hex[:24]}"
            tool = self._head.tools.get(part.name)
            fields = (
                {"call_id": call_id, "name": part.name, "arguments": ""}
                if tool is None
                else tool.call(call_id)
            )
            is_custom = tool is not None and tool.is_custom
            one = self._begun("custom_tool_call" if is_custom else "function_call", fields)
            one.call = part.index
        if part.arguments:
            one.texts.append(part.arguments)
        if part.arguments and one.item["type"] == "function_call":
            where = {"item_id": one.item["id"], "output_index": one.index}
            self._tell("response.function_call_arguments.delta", **where, delta=part.arguments)

    # -- items -----------------------------------------------------------------------------------------

    def _begun(self, kind: str, fields: dict[str, Any]) -> _OpenItem:
        item: Item = {"id": new_id(kind), "type": kind, "status": str(Status.IN_PROGRESS), **fields}
        one = _OpenItem(len(self._output) + len(self._open), item)
        self._open.append(one)
        shown = {name: list(value) if isinstance(value, list) else value for name, value in item.items()}
        self._tell("response.output_item.added", output_index=one.index, item=shown)
        return one

    def _writing(self, kind: str, part: str, fields: dict[str, Any]) -> _OpenItem:
        """The item of a kind that is open, with a part of that kind open in it."""
        if not (self._open and self._open[-1].item["type"] == kind):
            self._close_all()
            self._begun(kind, _EMPTY[kind]())
        one = self._open[-1]
        if one.part != part:
            self._close_part(one)
            one.part = part
            shown = {"type": part, **fields}
            if part == "summary_text":
                self._tell("response.reasoning_summary_part.added", **_in_summary(one), part=shown)
            else:
                self._tell("response.content_part.added", **_at(one), part=shown)
        return one

    def _close_part(self, one: _OpenItem) -> None:
        if not one.part:
            return
        text, where = "".join(one.texts), _at(one)
        part: dict[str, Any] = {"type": one.part, "text": text}
        if one.part == "output_text":
            part |= {"annotations": [], "logprobs": one.logprobs}
            self._tell("response.output_text.done", **where, text=text, logprobs=one.logprobs)
        elif one.part == "refusal":
            part = {"type": one.part, "refusal": text}
            self._tell("response.refusal.done", **where, refusal=text)
        elif one.part == "reasoning_text":
            self._tell("response.reasoning_text.done", **where, text=text)
        else:
            where = _in_summary(one)
            self._tell("response.reasoning_summary_text.done", **where, text=text)
        ending = "reasoning_summary_part" if one.part == "summary_text" else "content_part"
        self._tell(f"response.{ending}.done", **where, part=part)
        _parts(one).append(part)
        one.part, one.texts, one.logprobs = "", [], []

    def _close_all(self, *, complete: bool = True) -> None:
        """End what is open. An answer that was cut off was cut off in the last of it."""
        for one in self._open:
            self._close_part(one)
            whole = complete or one is not self._open[-1]
            one.item["status"] = str(Status.COMPLETED if whole else Status.INCOMPLETE)
            if one.item["type"] == "custom_tool_call":
                one.item["input"] = custom_input("".join(one.texts))
                where = {"item_id": one.item["id"], "output_index": one.index}
                self._tell("response.custom_tool_call_input.delta", **where, delta=one.item["input"])
                self._tell("response.custom_tool_call_input.done", **where, input=one.item["input"])
            if one.item["type"] == "function_call":
                one.item["arguments"] = "".join(one.texts)
                where = {"item_id": one.item["id"], "output_index": one.index}
                self._tell(
                    "response.function_call_arguments.done",
                    **where,
                    name=one.item["name"],
                    arguments=one.item["arguments"],
                )
            self._output.append(one.item)
            self._tell("response.output_item.done", output_index=one.index, item=one.item)
        self._open = []

    # -- the end ---------------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self._reason == "abort":
            self._fail("cancelled", "the request was cancelled")
            return
        why = _INCOMPLETE.get(self._reason)
        self._close_all(complete=why is None)
        if why is None:
            self.response["completed_at"] = int(time.time())
            self._end(Status.COMPLETED, "response.completed")
        else:
            self.response["incomplete_details"] = {"reason": why}
            self._end(Status.INCOMPLETE, "response.incomplete")

    def _fail(self, code: str | None, message: str, param: str | None = None) -> None:
        self._close_all(complete=False)
        self._tell("error", code=code, message=message, param=param)
        self.response["error"] = {"code": _failure_code(code), "message": message}
        self._end(Status.FAILED, "response.failed")

    def _end(self, status: Status, kind: str) -> None:
        self.status, self.over = status, True
        self.response["usage"] = _usage(self._usage) if self._usage is not None else None
        self._tell(kind, response=self.snapshot())
        if self._ended is not None:
            self._ended(self.snapshot())


_EMPTY: Mapping[str, Callable[[], dict[str, Any]]] = {
    "message": lambda: {"role": "assistant", "content": []},
    "reasoning": lambda: {"summary": [], "content": []},
}


def _parts(one: _OpenItem) -> list[dict[str, Any]]:
    """Where the parts of an item stand."""
    parts: list[dict[str, Any]] = one.item["summary" if one.part == "summary_text" else "content"]
    return parts


def _at(one: _OpenItem) -> dict[str, Any]:
    return {"item_id": one.item["id"], "output_index": one.index, "content_index": len(one.item["content"])}


def _in_summary(one: _OpenItem) -> dict[str, Any]:
    return {"item_id": one.item["id"], "output_index": one.index, "summary_index": len(one.item["summary"])}


def _logprob(told: Mapping[str, Any]) -> dict[str, Any]:
    """A token's log-probability as a chat tells it, with its bytes, which servers may leave out."""
    top = told.get("top_logprobs")
    made = _plain_logprob(told)
    made["top_logprobs"] = [_plain_logprob(one) for one in top or () if isinstance(one, dict)]
    return made


def _plain_logprob(told: Mapping[str, Any]) -> dict[str, Any]:
    token, value, spelled = str(told.get("token", "")), told.get("logprob"), told.get("bytes")
    return {
        "token": token,
        "logprob": value if isinstance(value, int | float) else -9999.0,
        "bytes": spelled if isinstance(spelled, list) else list(token.encode("utf-8", "replace")),
    }


def _failure_code(code: str | None) -> str:
    """One of the few codes that a response may fail with."""
    if code is not None and ("rate_limit" in code or "quota" in code):
        return "rate_limit_exceeded"
    return "invalid_prompt" if code in ("context_length_exceeded", "invalid_prompt") else "server_error"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.written_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


# -- as bytes --------------------------------------------------------------------------------------------


def frame(event: Mapping[str, Any]) -> bytes:
    """An event as it is sent."""
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\ndata: " + _encode(event) + b"\n\n"


class ResponsesEncoder(Encoder):
    """Writes one response, as a stream or in one piece."""

    def __init__(self, head: ResponseHead, ended: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.writer = ResponseWriter(head, ended)

    def event(self, event: Event) -> bytes:
        return _frames(self.writer.events(event.parts, event.last))

    def end(self) -> bytes:
        return _frames(self.writer.events((), True))

    def failure(self, error: ApiError) -> bytes:
        return _frames(self.writer.failed(error.code or error.kind, str(error), error.param))

    def whole(self, answer: WholeAnswer) -> bytes:
        self.writer.events(answer.parse(answer.body), True)
        return _encode(self.writer.snapshot())

    def late(self, answer: WholeAnswer) -> bytes:
        return _frames(self.writer.events(answer.parse(answer.body), True))


def _frames(events: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join([frame(event) for event in events])
