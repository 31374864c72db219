"""Tools as OpenAI's Responses has them, and as the functions of a chat that stand for them. Pure.

A function in a namespace is a function with a longer name; a custom tool, whose input is any text, is a function of one
text. `Offered.written` is what the client wrote, and calls are told in its words again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from weighbridge.wire.errors import ApiError, quoted

S = TypeVar("S", bound=Struct)
Name = Annotated[str, Meta(min_length=1)]

#: Tools that OpenAI runs and that a model may do without, where it has others: agents offer them to everybody.
_SPARED = frozenset({"web_search", "web_search_preview", "image_generation", "tool_search"})
#: The one argument of a function that stands for a custom tool.
_INPUT = "input"
_TEXT = {
    "type": "object",
    "properties": {_INPUT: {"type": "string"}},
    "required": [_INPUT],
    "additionalProperties": False,
}
#: Tools of one request, those in namespaces counted.
MOST_TOOLS = 4_096


class FunctionTool(Struct, omit_defaults=True):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Input(Struct):
    input: str


class CustomFormat(Struct):
    """What the input of a custom tool must be. A grammar is told to the model, and holds nothing."""

    type: Literal["text", "grammar"] | None = None  # None: a text
    syntax: str | None = None
    definition: str | None = None


class CustomTool(Struct):
    name: Name
    description: str | None = None
    format: CustomFormat | None = None


class Namespace(Struct):
    name: Name
    tools: list[dict[str, Any]]
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool that the model is shown. `function`: what stands for it in a chat."""

    name: str
    function: FunctionTool
    namespace: str | None = None
    is_custom: bool = False

    def call(self, call_id: str) -> dict[str, Any]:
        """The beginning of an item that calls it."""
        where = {} if self.namespace is None else {"namespace": self.namespace}
        empty = {_INPUT: ""} if self.is_custom else {"arguments": ""}
        return {"call_id": call_id, "name": self.name, **where, **empty}


@dataclass(frozen=True, slots=True)
class Tools:
    """All tools of a request. `shown`: as a response repeats them; `spared`: kinds that are left out."""

    offered: tuple[Offered, ...] = ()
    shown: tuple[dict[str, Any], ...] = ()
    spared: tuple[str, ...] = ()

    def by_function(self) -> dict[str, Offered]:
        return {one.function.name: one for one in self.offered}


def read_tools(written: Sequence[Mapping[str, Any]], may_spare: bool) -> Tools:
    """The tools of a request. `may_spare`: nothing demands one that is not here. Raises ApiError naming the tool."""
    offered: list[Offered] = []
    shown: list[dict[str, Any]] = []
    spared: list[tuple[int, str]] = []
    for index, tool in enumerate(written):
        kind = tool.get("type")
        if isinstance(kind, str) and kind in _SPARED:
            spared.append((index, kind))
            continue
        more, repeated = _read(tool, f"tools[{index}]")
        offered += more
        shown.append(repeated)
    if spared and not (offered and may_spare):
        raise _not_here(f"tools[{spared[0][0]}]", spared[0][1])
    if len(offered) > MOST_TOOLS:
        raise ApiError(
            400, f"tools: there are {len(offered)}, but at most {MOST_TOOLS} are taken", param="tools"
        )
    return Tools(tuple(offered), tuple(shown), tuple(dict.fromkeys(kind for _, kind in spared)))


def _read(tool: Mapping[str, Any], where: str) -> tuple[list[Offered], dict[str, Any]]:
    """A tool as the functions that stand for it, and as a response repeats it."""
    if tool.get("type") != "namespace":
        one = _single(tool, where, None)
        return [one], _shown(one, tool)
    space = converted(tool, Namespace, where)
    inner = [_single(each, f"{where}.tools[{index}]", space.name) for index, each in enumerate(space.tools)]
    again = [_shown(one, each) for one, each in zip(inner, space.tools, strict=True)]
    described = space.description or ""
    return inner, {"type": "namespace", "name": space.name, "description": described, "tools": again}


def _single(tool: Mapping[str, Any], where: str, namespace: str | None) -> Offered:
    kind = tool.get("type")
    if kind == "function":
        function = converted(tool, FunctionTool, where)
        function.name, name = joined(namespace, function.name), function.name
        return Offered(name, function, namespace)
    if kind == "custom":
        custom = converted(tool, CustomTool, where)
        about = "\n".join([one for one in (custom.description, _format_told(custom.format)) if one])
        stand_in = FunctionTool(joined(namespace, custom.name), about or None, _TEXT)
        return Offered(custom.name, stand_in, namespace, is_custom=True)
    raise _not_here(where, kind)


def _format_told(format_: CustomFormat | None) -> str:
    if format_ is None or format_.type != "grammar":
        return ""
    return f"`{_INPUT}` must match this {format_.syntax or ''} grammar:\n{format_.definition or ''}"


def _not_here(where: str, kind: Any) -> ApiError:
    message = (
        f"{where}: {quoted(kind)} tools are run by OpenAI, and by nothing here; use function or custom tools"
    )
    return ApiError(400, message, param="tools")


def _shown(one: Offered, written: Mapping[str, Any]) -> dict[str, Any]:
    if one.is_custom:
        return {name: written[name] for name in ("type", "name", "description", "format") if name in written}
    function = one.function
    return {
        "type": "function",
        "name": one.name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": function.strict,
    }


def joined(namespace: Any, name: str) -> str:
    """What a function in a namespace is called in a chat."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


def chosen_name(tools: Iterable[Offered], wanted: Mapping[str, Any]) -> str | None:
    """The name in a chat of the tool that a choice names; None where there is none."""
    for one in tools:
        if (one.name, one.namespace) == (wanted.get("name"), wanted.get("namespace")):
            return one.function.name
    return None


def custom_input(arguments: str) -> str:
    """The input of a custom tool out of a call's arguments; what is no such object is the input itself."""
    try:
        value = msgspec.json.decode(arguments, type=_Input).input
        value.encode()
    except (ValueError, RecursionError):  # DecodeError is a ValueError, and so is half of a surrogate pair
        return arguments
    return value


def custom_arguments(written: str) -> str:
    """The other way round."""
    return msgspec.json.encode({_INPUT: written}).decode()


def converted(value: Any, kind: type[S], where: str) -> S:
    """A value as a type. Raises ApiError naming the place."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem = str(error).replace(" - at `$.", " at `")
        raise ApiError(
            400, f"{where}: {problem[0].lower()}{problem[1:]}", param=where.split("[")[0]
        ) from None
