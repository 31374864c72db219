"""Rules for prompts applied to a request, and what they are worth: which request would have left the cache where.

They act on the common request, so that they are the same in every protocol. Nothing is done where no rule is
configured for who asks, and nothing silently: what was touched is on the ticket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from weighbridge.errors import BadInput
from weighbridge.wire.ask import LONGEST_NAME, Ask
from weighbridge.wire.prompts.rules import Piece, PromptRule, SystemPrompt, sorted_by_name, split, with_moved

#: The path whose requests have a system prompt.
_CHAT = "/v1/chat/completions"
#: Stands for every tenant that has no rules of its own, and for all rules.
EVERYBODY, ALL = "", "all"
#: Heads of prompts that are remembered, of everybody together, and pieces of each.
MOST_HEADS, MOST_PIECES = 4096, 64

_encode = msgspec.json.encode


class TenantRules(NamedTuple):
    """Rules for a tenant's prompts; an empty name: for everybody who has none."""

    tenant: str
    rules: frozenset[PromptRule]

    def __str__(self) -> str:
        said = "+".join(sorted(self.rules)) or "none"
        return f"{self.tenant}={said}" if self.tenant else said


def parse_tenant_rules(text: str) -> TenantRules:
    """Read [TENANT=]RULE+RULE, where `all` and `none` are words too. Raises BadInput."""
    tenant, _, said = text.rpartition("=")
    names = [name.strip() for name in said.split("+")]
    known = [str(rule) for rule in PromptRule]
    wrong = [name for name in names if name not in (*known, ALL, "none")]
    if wrong or len(tenant) > LONGEST_NAME:
        hint = f"write [TENANT=]RULE+RULE, of {', '.join(known)}, all or none"
        raise BadInput(f"prompt rules {text[:LONGEST_NAME]!r}: {hint}", param="prompt_rules")
    rules = known if ALL in names else [name for name in names if name != "none"]
    return TenantRules(tenant, frozenset(map(PromptRule, rules)))


class PromptCare:
    """The rules of all tenants, and which heads of prompts came last, by digests alone. One thread at a time."""

    def __init__(self, configured: Iterable[TenantRules] = ()) -> None:
        """Raises BadInput where a tenant is named twice."""
        self._rules: dict[str, frozenset[PromptRule]] = {}
        for one in configured:
            if one.tenant in self._rules:
                whose = repr(one.tenant) if one.tenant else "everybody"
                raise BadInput(
                    f"prompt rules for {whose} are given twice; join them with +", param="prompt_rules"
                )
            self._rules[one.tenant] = one.rules
        self._last: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()

    def rules_of(self, tenant: str) -> frozenset[PromptRule]:
        found = self._rules.get(tenant)
        return found if found is not None else self._rules.get(EVERYBODY, frozenset())

    def concerns(self, ask: Ask) -> bool:
        """Whether there is something to be done, which for most requests there is not."""
        return bool(self._rules) and ask.path == _CHAT and bool(self.rules_of(ask.tenant))

    def settle(self, ask: Ask, made: Normal | None) -> None:
        """Put into a request what `normal` made of its fields, and note on it what was touched and what moved."""
        if made is None:
            return
        ask.replace_fields(dict(made.fields))
        ask.notes.append(made.sentence)
        ask.prompt_rules = {
            "touched": made.told,
            "left_at": self._left_at(f"{ask.tenant}\0{ask.cache_salt}", made),
        }

    def _left_at(self, whose: str, made: Normal) -> float | None:
        """The share of the prompt up to where it would have left the last one that was alike behind the rules; None
        where there was none, or nothing had moved."""
        key = blake2b(
            made.stable, digest_size=16, key=blake2b(whose.encode("utf-8", "surrogatepass")).digest()
        )
        name = key.digest()
        before = self._last.pop(name, None)
        now = tuple(blake2b(one, digest_size=8).digest() for one, _ in made.originals[:MOST_PIECES])
        self._last[name] = now
        while len(self._last) > MOST_HEADS:
            self._last.popitem(last=False)
        if before is None or before == now:
            return None
        at = next(
            (at for at, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), None
        )
        at = min(len(before), len(now)) if at is None else at
        return made.originals[min(at, len(made.originals) - 1)][1]


class _Function(Struct):
    name: str


class _Tool(Struct):
    function: _Function


class Normal(NamedTuple):
    """What rules made of a request. `stable`: its head without all that moves; `originals`: what was touched, as it
    was, and the share of the prompt that stands before it."""

    fields: Mapping[str, msgspec.Raw]
    told: list[dict[str, Any]]
    sentence: str
    stable: bytes
    originals: Sequence[tuple[bytes, float]]


_HEADS = ("system", "developer")
_SORTED = "sorted by name"


def _done(piece: Piece, head: SystemPrompt) -> str:
    """What became of a piece, in words."""
    if piece.rule is PromptRule.BILLING:
        return "dropped"
    if piece.rule is PromptRule.WHITESPACE:
        return "ends cut"
    is_last = any(piece is one for one in head.last)
    return f"moved behind the {'last message' if is_last else 'system prompt'}"


def normal(fields: Mapping[str, msgspec.Raw], rules: frozenset[PromptRule]) -> Normal | None:
    """What `rules` make of the fields of a chat; None where they find nothing, or the fields are not a chat's."""
    try:
        return _normal(fields, rules)
    except (
        KeyError,
        msgspec.DecodeError,
        UnicodeError,
        RecursionError,
    ):  # whoever reads it says what is wrong
        return None


def _normal(fields: Mapping[str, msgspec.Raw], rules: frozenset[PromptRule]) -> Normal | None:
    raws: list[msgspec.Raw] = msgspec.json.decode(fields["messages"], type=list[msgspec.Raw])
    messages = _heads_of(raws)
    last = msgspec.json.decode(raws[-1]) if len(raws) > len(messages) else None
    tools = _sorted_tools(fields.get("tools")) if PromptRule.TOOLS in rules else None
    texts = [text for message in messages for text in _texts_of(message)]
    head = split(texts, rules, has_last=_takes_more(last))
    touched = head.touched
    if not touched and tools is None:
        return None
    changed: dict[str, msgspec.Raw] = {}
    if touched:
        changed["messages"] = _messages(raws, messages, head, last)
    if tools is not None:
        changed["tools"] = tools.made
    told = _told(head, tools is not None)
    size = sum(len(bytes(fields[name])) for name in ("messages", "tools") if name in fields)
    rest = "\0".join("\n".join(lines) for lines in head.rest).encode("utf-8", "surrogatepass")
    own_tools = bytes(changed.get("tools") or fields.get("tools") or b"")
    return Normal(changed, told, _sentence(told), rest + own_tools, _originals(texts, touched, tools, size))


def _messages(
    raws: Sequence[msgspec.Raw], messages: Sequence[dict[str, Any]], head: SystemPrompt, last: Any
) -> msgspec.Raw:
    """All messages: the system prompt as it is to be, and the others as they were written, but for what the last one
    is told beside."""
    shown = [_encode(_with_texts(one, given)) for one, given in _given(messages, head)]
    shown += [bytes(raw) for raw in raws[len(messages) :]]
    if head.last:
        shown[-1] = _encode(_with_lines(last, [line for piece in head.last for line in piece.lines]))
    return msgspec.Raw(b"[" + b",".join(shown) + b"]")


def _heads_of(raws: Sequence[msgspec.Raw]) -> list[dict[str, Any]]:
    """The messages of the system prompt, which stand before all others."""
    found: list[dict[str, Any]] = []
    for raw in raws:
        message = msgspec.json.decode(raw)
        if not isinstance(message, dict) or message.get("role") not in _HEADS:
            break
        found.append(message)
    return found


def _texts_of(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if _is_text(part)]


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _given(messages: Sequence[dict[str, Any]], head: SystemPrompt) -> list[tuple[dict[str, Any], list[str]]]:
    """Each message of the system prompt with the texts that it is to have."""
    left = iter(head.texts)
    return [(one, [next(left) for _ in _texts_of(one)]) for one in messages]


def _with_texts(message: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """A message with other texts; of several parts, those of which nothing is left are left out."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": texts[0]}
    if not isinstance(content, list):
        return message
    left = iter(texts)
    parts = [{**part, "text": next(left)} if _is_text(part) else part for part in content]
    kept = [
        new
        for old, new in zip(content, parts, strict=True)
        if not _is_text(old) or new["text"] or not old["text"]
    ]
    return {**message, "content": kept or parts[:1]}


def _takes_more(last: Any) -> bool:
    """Whether lines can stand behind the last message: not behind an answer that has begun."""
    return (
        isinstance(last, dict)
        and last.get("role") in ("user", "tool")
        and isinstance(last.get("content"), str | list)
    )


def _with_lines(message: dict[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": with_moved(content, lines)}
    return {**message, "content": [*content, {"type": "text", "text": with_moved("", lines)}]}


class _Tools(NamedTuple):
    made: msgspec.Raw
    before: bytes  # the names as they stood


def _sorted_tools(raw: msgspec.Raw | None) -> _Tools | None:
    """Tools by their names; None where they stand so, or are not what tools look like."""
    if raw is None:
        return None
    tools = msgspec.json.decode(raw, type=list[msgspec.Raw])
    names = [msgspec.json.decode(one, type=_Tool).function.name for one in tools]
    order = sorted_by_name(names)
    if order is None:
        return None
    made = b"[" + b",".join(bytes(tools[at]) for at in order) + b"]"
    return _Tools(msgspec.Raw(made), "\0".join(names).encode("utf-8", "surrogatepass"))


def _told(head: SystemPrompt, sorts: bool) -> list[dict[str, Any]]:
    """What each rule touched: how many lines, and what became of them. None of their words."""
    counted: dict[tuple[str, str], int] = {}
    for piece in head.touched:
        key = str(piece.rule), _done(piece, head)
        counted[key] = counted.get(key, 0) + len(piece.lines)
    told: list[dict[str, Any]] = [
        {"rule": rule, "what": what, "lines": lines} for (rule, what), lines in sorted(counted.items())
    ]
    return [*told, {"rule": str(PromptRule.TOOLS), "what": _SORTED}] if sorts else told


def _sentence(told: Sequence[Mapping[str, Any]]) -> str:
    said = [
        f"{one['rule']} ({one['lines']} line{'s' * (one['lines'] != 1)} {one['what']})"
        if "lines" in one
        else f"{one['rule']} ({one['what']})"
        for one in told
    ]
    return f"prompt rules: {', '.join(said)}"


def _originals(
    texts: Sequence[str], touched: Sequence[Piece], tools: _Tools | None, size: int
) -> list[tuple[bytes, float]]:
    """What was touched as it was, in the order in which templates write it, and about how much stands before."""
    lengths = [len(text) for text in texts]
    starts = [0, *accumulate(lengths)]
    found: list[tuple[bytes, float]] = []
    for piece in touched:
        before = texts[piece.text].split("\n")[: piece.line]
        at = starts[piece.text] + sum(len(line) + 1 for line in before)
        found.append(("\n".join(piece.lines).encode("utf-8", "surrogatepass"), min(at / max(size, 1), 1.0)))
    if tools is not None:
        found.append((tools.before, min(starts[-1] / max(size, 1), 1.0)))
    return found
