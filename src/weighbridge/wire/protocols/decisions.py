"""OpenAI's Decisions: questions about an input, answered with probabilities and no text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.wire.ask import LONGEST_SALT, Ask, Extension
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import Part, UsagePart
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols.openai import Peek, WholeEncoder, ask_of, body_of
from weighbridge.wire.protocols.response.items import REFERENCE, Message, chat_messages, read_items
from weighbridge.wire.usage import read_usage

PATH = "/v1/decisions"
#: Of one request, and of one question: OpenAI's own limits.
MOST_QUESTIONS, MOST_CHOICES = 400, 255
#: Characters of a label, and of all that is said about it or asked.
LONGEST_LABEL, LONGEST_TEXT = 1_000, 100_000

Label = Annotated[str, Meta(min_length=1, max_length=LONGEST_LABEL)]
Said = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class ChoiceValue(Struct):
    """One value that may be chosen."""

    value: Label | bool
    description: Said | None = None


class ScoreLevel(Struct):
    """One level of a scale, the lowest first."""

    label: Label
    description: Said | None = None


class Predicate(Struct, tag_field="type", tag="predicate"):
    """How likely it is that a statement about the input is true."""

    instructions: Said | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    name: Name | None = None


class ChoiceQuestion(Struct, tag_field="type", tag="choice"):
    """Which of these values fits the input."""

    instructions: Said | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    choices: Annotated[list[ChoiceValue], Meta(min_length=2, max_length=MOST_CHOICES)]
    name: Name | None = None


class ScoreQuestion(Struct, tag_field="type", tag="score"):
    """Where on a scale the input stands."""

    instructions: Said | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    levels: Annotated[list[ScoreLevel], Meta(min_length=2, max_length=MOST_CHOICES)]
    name: Name | None = None


Question = Predicate | ChoiceQuestion | ScoreQuestion


class DecisionRequest(Struct, kw_only=True):
    """Questions, and the input that all of them are about."""

    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    questions: Annotated[list[Question], Meta(min_length=1, max_length=MOST_QUESTIONS)]
    model: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    user: str | None = None
    cache_salt: Annotated[str, Meta(max_length=LONGEST_SALT)] | None = None
    weighbridge: Extension | None = None

    def messages(self) -> list[Message]:
        """The input as a chat. Raises ApiError naming the item that is wrong."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        items = read_items([_plain(one) for one in self.input])
        for index, item in enumerate(items):
            if item["type"] == REFERENCE:
                raise ApiError(
                    400, f"input[{index}]: nothing is kept of before; send the item itself", param="input"
                )
        return chat_messages(None, items)


class _DecisionPeek(Peek, kw_only=True):
    input: msgspec.Raw
    questions: list[Question]


class DecisionProtocol(WireProtocol):
    name, path = "decisions", PATH

    def read(self, body: bytes) -> Ask:
        request = decode(body, DecisionRequest)
        check_questions(request.questions)
        ask = ask_of(PATH, decode(body, _DecisionPeek), body)
        ask.stream, ask.max_tokens, ask.choices, ask.own = False, None, 1, request
        return ask

    def encoder(self, ask: Ask) -> WholeEncoder:
        return WholeEncoder()


def check_questions(questions: Sequence[Question]) -> None:
    """Raise ApiError for a question whose labels, or name, cannot be told apart."""
    names: set[str] = set()
    for index, question in enumerate(questions):
        labels = labels_of(question)
        if len(set(labels)) < len(labels):
            raise ApiError(400, f"questions[{index}]: its labels must differ", param="questions")
        if question.name is not None and question.name in names:
            message = f"questions[{index}].name: {question.name!r} is another question's"
            raise ApiError(400, message, param="questions")
        names |= {question.name} if question.name is not None else set()
        instructions_of(question, index)


def labels_of(question: Question) -> list[tuple[str, str]]:
    """What may be answered, each with what is said about it. Choices that are no texts are said as JSON says them."""
    if isinstance(question, Predicate):
        return [("yes", ""), ("no", "")]
    if isinstance(question, ScoreQuestion):
        return [(one.label, one.description or "") for one in question.levels]
    return [(_said(one.value), one.description or "") for one in question.choices]


def _said(value: str | bool) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def instructions_of(question: Question, index: int) -> str:
    """What is asked, as one text. Raises ApiError for parts that are none."""
    if isinstance(question.instructions, str):
        return question.instructions
    place = f"questions[{index}].instructions"
    return "\n".join([_part_text(part, f"{place}[{at}]") for at, part in enumerate(question.instructions)])


def _part_text(part: Mapping[str, Any], place: str) -> str:
    if part.get("type") == "input_text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if part.get("type") == "input_json" and "data" in part:
        return _as_json(part["data"])
    raise ApiError(400, f"{place}: must be an input_text or input_json part", param="questions")


def _as_json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """An item in the words of Responses: JSON is text, and a custom tool's call has one argument."""
    if item.get("type") == "custom_tool_call":
        arguments = _as_json({"input": item.get("input")})
        return {**item, "type": "function_call", "arguments": arguments}
    if item.get("type") == "custom_tool_call_output":
        return {**item, "type": "function_call_output"}
    content = item.get("content")
    if not isinstance(content, list):
        return item
    return {**item, "content": [_plain_part(part) for part in content]}


def _plain_part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "input_json" and "data" in part:
        return {"type": "input_text", "text": _as_json(part["data"])}
    return part


def decision_parts(body: bytes) -> Sequence[Part]:
    """Answers are no parts of a conversation; what they took is."""
    usage = read_usage((body_of(body) or {}).get("usage"))
    return [] if usage is None else [UsagePart(usage)]
