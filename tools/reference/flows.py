"""The page of `weighbridge.flow`: everything that it offers, with signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tools.reference.markdown import MADE, filled, table, words

import weighbridge.flow
from weighbridge.flow import hooks
from weighbridge.flow.step import Options

_INTRODUCTION = """# weighbridge.flow

{made}

`from weighbridge.flow import ...`. What it is for and how it behaves: [the guide](../guide/flow.md).
"""

#: The groups of the page, in its order; what belongs to none is under "Further names".
GROUPS = {
    "Steps and flows": (
        "step",
        "flow",
        "Step",
        "Flow",
        "Effect",
        "In",
        "Promise",
        "Budget",
        "charge",
        "attempt",
        "recorded",
    ),
    "Bets": (
        "guess",
        "prefetch",
        "best",
        "first",
        "Predictor",
        "Prediction",
        "Several",
        "History",
        "DecisionPredictor",
    ),
    "Models and tools": ("llm", "Llm", "Reply", "ToolCall", "GuessedCall", "mcp_tools"),
    "Errors": ("BudgetExceeded", "Diverged", "FlowTimeout", "InDoubt", "NotDone", "PlanError", "StepTimeout"),
}
#: What `@step` passes on by name.
_DEFAULT = re.compile(r"<factory>|<function .*>")


@cache
def page() -> str:
    grouped = {name for names in GROUPS.values() for name in names}
    rest = tuple(sorted(set(weighbridge.flow.__all__) - grouped))
    parts = [filled(_INTRODUCTION.format(made=MADE))]
    for title, names in {**GROUPS, "Further names": rest}.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += _entry(name, getattr(weighbridge.flow, name))
    parts.append("## Hooks\n")
    parts += _entry("hooks.Hook", hooks.Hook)
    return "\n".join(parts)


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if not callable(thing) or not getattr(thing, "__module__", "").startswith("weighbridge"):
        yield f"    {name} = {_value(thing)}\n"
        return
    yield f"    {name}{_signature(thing)}\n"
    yield _docstring(thing)
    if name == "step":
        yield from _step_options()
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        yield from _members(thing)


def _value(thing: Any) -> str:
    return re.sub(r"\btyping\.|\bcollections\.abc\.|~| at 0x[0-9a-f]+", "", repr(thing))


def _step_options() -> Iterator[str]:
    """The options that `@step` takes by name beside those in its signature."""
    rows = [
        (f"`{name}`", f"`{_annotation(one.annotation)}`", f"`{one.default!r}`")
        for name, one in inspect.signature(Options).parameters.items()
        if one.default is not inspect.Parameter.empty
    ]
    yield table(("option", "type", "default"), rows)


def _members(thing: type) -> Iterator[str]:
    rows = []
    for name, member in vars(thing).items():
        if name.startswith("_"):
            continue
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) or isinstance(member, classmethod | staticmethod):
            function = getattr(member, "__func__", function)
            shown = name if isinstance(member, property) else name + _signature(function, bound=True)
            rows.append((f"`{shown}`", words(_first(inspect.getdoc(function) or ""))))
    if rows:
        yield table(("member", "what it is"), rows)


def _first(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _signature(thing: Any, bound: bool = False) -> str:
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [
        one.replace(annotation=_Shown(_annotation(one.annotation))) for one in signature.parameters.values()
    ]
    parameters = [
        one if one.annotation.text else one.replace(annotation=inspect.Parameter.empty) for one in parameters
    ]
    if bound and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    shown = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    answer = _annotation(signature.return_annotation)
    return _DEFAULT.sub("...", shown) + (f" -> {answer}" if answer and not inspect.isclass(thing) else "")


class _Shown:
    """An annotation as it is written in the source."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _docstring(thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    return "\n\n".join(words(part) for part in text.split("\n\n")) + "\n"
