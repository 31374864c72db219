"""What a request may need of a replica beyond room, and how it is read from the request's own fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec


class Ability(StrEnum):
    """One thing that not every server can. The word is a key of `abilities:` in weighbridge.yaml."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    SCORES = "scores"
    LABELS = "labels"
    DECISIONS = "decisions"
    TOOLS = "tools"
    FORCED_TOOLS = "forced_tools"  # a call that must be made: ours constrain it, whatever the template
    SCHEMA = "schema"
    LOGPROBS = "logprobs"
    VISION = "vision"
    AUDIO = "audio"


#: A set of abilities.
Needs = frozenset[Ability]
NOTHING: Needs = frozenset()

#: What each path of OpenAI's API takes.
ENDPOINTS: Mapping[str, Ability] = {
    "/v1/chat/completions": Ability.CHAT,
    "/v1/completions": Ability.COMPLETIONS,
    "/v1/embeddings": Ability.EMBEDDINGS,
    "/v1/score": Ability.SCORES,
    "/v1/rerank": Ability.SCORES,
    "/v1/classify": Ability.LABELS,
    "/v1/decisions": Ability.DECISIONS,
}
_OF_ENDPOINTS = {path: frozenset({ability}) for path, ability in ENDPOINTS.items()}

#: The same for people: "an endpoint for embeddings".
IN_WORDS: Mapping[Ability, str] = {
    Ability.CHAT: "an endpoint for chats",
    Ability.COMPLETIONS: "an endpoint for completions",
    Ability.EMBEDDINGS: "an endpoint for embeddings",
    Ability.SCORES: "scores of texts beside each other",
    Ability.LABELS: "labels of texts",
    Ability.DECISIONS: "an endpoint for decisions",
    Ability.TOOLS: "tools",
    Ability.FORCED_TOOLS: "calls of tools that must be made",
    Ability.SCHEMA: "structured output",
    Ability.LOGPROBS: "log-probabilities",
    Ability.VISION: "pictures",
    Ability.AUDIO: "sound",
}

#: Constraints on the output, by the names that OpenAI, vLLM and llama-server give them.
_CONSTRAINTS = frozenset(
    {
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "json_schema",
        "grammar",
        "regex",
        "ebnf",
    }
)
#: Parts of a message that are no text, by their `type`.
_PARTS = {"image_url": Ability.VISION, "input_audio": Ability.AUDIO}

_NAMES = tuple(kind.encode() for kind in _PARTS)

_decode = msgspec.json.decode


def needs_of(path: str, fields: Mapping[str, msgspec.Raw]) -> Needs:
    """Return what a request needs that not every server has. Its usual answer costs a few looks into `fields`."""
    needs = _OF_ENDPOINTS.get(path, NOTHING)
    if "tools" in fields and _wants_tools(fields):
        needs |= {Ability.FORCED_TOOLS if is_forced(_of(fields, "tool_choice")) else Ability.TOOLS}
    if _is_constrained(fields):
        needs |= {Ability.SCHEMA}
    if _wants_logprobs(fields):
        needs |= {Ability.LOGPROBS}
    messages = fields.get("messages")
    if messages is not None and may_have(bytes(messages), *_NAMES):
        needs |= {_PARTS[kind] for kind in part_kinds(_value(messages)) if kind in _PARTS}
    return needs


def read_bytes(fields: Mapping[str, msgspec.Raw]) -> int:
    """How many bytes `needs_of` has to read as values, which takes a thousand times as long as to look over them."""
    size = sum([len(bytes(fields[name])) for name in ("tools", "response_format") if name in fields])
    messages = bytes(fields.get("messages", b""))
    return size + (len(messages) if may_have(messages, *_NAMES) else 0)


def may_have(raw: bytes, *names: bytes) -> bool:
    """Whether one of `names`, all of which have an underscore, stands somewhere in `raw`.

    A single byte is looked for at memory's speed, a name at a hundredth of it.
    """
    return b"_" in raw and any(name in raw for name in names)


def part_kinds(messages: Any) -> set[str]:
    """The types of all parts of all messages."""
    kinds = set()
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(kind := part.get("type"), str):
                kinds.add(kind)
    return kinds


def in_words(abilities: Iterable[Ability]) -> str:
    """Abilities for people, in their usual order."""
    wanted = set(abilities)
    return " and ".join(IN_WORDS[one] for one in Ability if one in wanted)


def are_tools(value: Any) -> bool:
    """Whether it is a list of tools. What is none needs nobody who can: whoever answers says what is wrong with it."""
    return isinstance(value, list) and bool(value) and all(_is_tool(one) for one in value)


def is_forced(choice: Any) -> bool:
    """Whether a `tool_choice` says that a call must be made."""
    return choice == "required" or isinstance(choice, dict)


def _is_tool(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function")
    return value.get("type", "") not in ("function", "") or (
        isinstance(function, dict) and bool(function.get("name"))
    )


def _wants_tools(fields: Mapping[str, msgspec.Raw]) -> bool:
    return are_tools(_of(fields, "tools")) and _of(fields, "tool_choice") != "none"


def _is_constrained(fields: Mapping[str, msgspec.Raw]) -> bool:
    if "response_format" in fields:
        wanted = _of(fields, "response_format")
        if isinstance(wanted, dict) and wanted.get("type", "text") != "text":
            return True
    if _CONSTRAINTS.isdisjoint(fields):
        return False
    return any(_of(fields, name) is not None for name in _CONSTRAINTS)


def _wants_logprobs(fields: Mapping[str, msgspec.Raw]) -> bool:
    """A chat says true or false, a completion a number, where 0 is a wish too."""
    if "prompt_logprobs" in fields and _of(fields, "prompt_logprobs") is not None:
        return True
    if "logprobs" not in fields:
        return False
    wanted = _of(fields, "logprobs")
    return wanted is not None and wanted is not False


def _of(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    raw = fields.get(name)
    return None if raw is None else _value(raw)


def _value(raw: msgspec.Raw) -> Any:
    """A field's value; None for what cannot be read, which whoever answers will say."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
