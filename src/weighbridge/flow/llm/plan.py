"""Streamed plans: each call of a plan starts when it has been written, not when the plan has.

A plan is text of one call a line, as LLMCompiler writes them; `$1` is the result of call 1:

    1. search("height of Mont Blanc")
    2. search("height of the Eiffel Tower")
    3. divide($1, $2)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.errors import WeighbridgeError
from weighbridge.flow.bets.prefetch import prefetch
from weighbridge.flow.runtime import Promise
from weighbridge.flow.step import Step

_LINE = re.compile(r"^\s*(\d+)\s*[.):]\s*([A-Za-z_]\w*)\s*(\(.*\))\s*$")
_REFERENCE = re.compile(r"\$\{?(\d+)\}?")
_MARK = "_weighbridge_result_"


class PlanError(WeighbridgeError):
    """A plan that cannot be carried out."""


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One line of a plan; arguments may hold `Reference`s to earlier ones."""

    number: int
    tool: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """The result of an earlier call."""

    number: int


class PlanReader:
    """Fed text as it comes; gives each call as soon as its line is complete. Other lines are comments."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, piece: str) -> list[PlannedCall]:
        *lines, self._rest = (self._rest + piece).split("\n")
        return [call for line in lines if (call := parse_line(line)) is not None]

    def finish(self) -> list[PlannedCall]:
        return self.feed("\n")


def parse_line(line: str) -> PlannedCall | None:
    """Return the call in a line, or None if there is none. Raises PlanError for arguments that are no literals."""
    match = _LINE.match(line)
    if match is None:
        return None
    number, tool, arguments = int(match[1]), match[2], match[3]
    try:
        tree = ast.parse("f" + _marked(arguments), mode="eval").body
        assert isinstance(tree, ast.Call)
        args = tuple(_value(argument) for argument in tree.args)
        kwargs = {str(keyword.arg): _value(keyword.value) for keyword in tree.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise PlanError(f"plan, call {number}: {arguments} cannot be read ({error})") from error
    return PlannedCall(number, tool, args, kwargs)


def _marked(arguments: str) -> str:
    """Turn references outside of quotes into names."""
    parts = re.split(r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", arguments)
    return "".join(
        part if part[:1] in "\"'" and part else _REFERENCE.sub(rf"{_MARK}\1", part) for part in parts
    )


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id.startswith(_MARK):
        return Reference(int(node.id.removeprefix(_MARK)))
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


class PlanRunner:
    """Starts the calls of a plan. While it is written, reads are prefetched; `start` makes the calls."""

    def __init__(self, tools: Sequence[Step[..., Any]]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._reader = PlanReader()
        self._ahead: dict[int, Promise[Any]] = {}

    def feed(self, piece: str) -> None:
        """More of the plan has come: prefetch what it asks for, if that only reads."""
        for call in self._reader.feed(piece):
            tool = self._tools.get(call.tool)
            if tool is None or any(number not in self._ahead for number in _references(call)):
                continue
            started = prefetch(tool, *_filled(call.args, self._ahead), **_filled(call.kwargs, self._ahead))
            if started is not None:
                self._ahead[call.number] = started

    def start(self, plan: str) -> dict[int, Any]:
        """Call everything the whole plan asks for, in its order: promises by number.

        Raises PlanError for an unknown tool or a reference to a call that does not come before it.
        """
        made: dict[int, Any] = {}
        for call in [call for line in plan.split("\n") if (call := parse_line(line)) is not None]:
            tool = self._tools.get(call.tool)
            if tool is None:
                names = ", ".join(self._tools) or "none"
                raise PlanError(f"plan, call {call.number}: no tool {call.tool!r}; the tools are: {names}")
            missing = [number for number in _references(call) if number not in made]
            if missing:
                raise PlanError(f"plan, call {call.number}: ${missing[0]} does not come before it")
            made[call.number] = tool(*_filled(call.args, made), **_filled(call.kwargs, made))
        return made


def _references(call: PlannedCall) -> list[int]:
    numbers: list[int] = []

    def note(reference: Reference) -> None:
        numbers.append(reference.number)

    _walk([list(call.args), call.kwargs], note)
    return numbers


def _filled(value: Any, made: dict[int, Any]) -> Any:
    return _walk(value, lambda reference: made[reference.number])


def _walk(value: Any, each: Callable[[Reference], Any]) -> Any:
    if isinstance(value, Reference):
        return each(value)
    if isinstance(value, list | tuple):
        return type(value)(_walk(item, each) for item in value)
    if isinstance(value, dict):
        return {key: _walk(item, each) for key, item in value.items()}
    return value
