"""How a request is to be treated: the body's key `weighbridge` and the `x-weighbridge-*` headers, read in one place.

Where a word can only restrict, the words of all sides add up: labels are united, the later priority, the nearer
deadline, the smaller sum and `only_edge` hold, whoever says so. Where it can widen, the trusted side has the last
word: a key's tenant cannot be overridden, but where it is a gateway's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from weighbridge.wire.ask import LONGEST_NAME, MAX_LABELS, Ask, Extension, Placement, folded, new_id
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import OURS, PASSED_ON

#: A lower priority runs first; what is outside is moved to the bound.
LOWEST_PRIORITY, HIGHEST_PRIORITY = -1000, 1000

_TICKET = re.compile("[0-9a-f]{32}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_FLAGS = {
    word: value
    for value, words in ((True, "1 true yes on"), (False, "0 false no off"))
    for word in words.split()
}


@dataclass(frozen=True, slots=True)
class KnownCaller:
    """A caller by its tenant, and what that tenant may do beside its own requests.

    `is_gateway`: whom it names as the tenant is believed. `is_watcher`: it sees everybody's figures.
    """

    tenant: str
    is_gateway: bool = False
    is_watcher: bool = False

    def named(self, body: str | None, headers: Mapping[str, str]) -> str:
        """The tenant that a request of this caller is for: a gateway's word, else the caller itself.

        OpenAI's `user` is not asked: it is a gateway's client that writes it.
        """
        if not self.is_gateway:
            return self.tenant
        return (body or headers.get(OURS + "tenant") or self.tenant)[:LONGEST_NAME]


def apply_caller(ask: Ask, headers: Mapping[str, str], caller: KnownCaller | None, now: float) -> None:
    """Write into `ask` who asks and how it is to be treated. `now` is the server's clock.

    `caller` is who calls, if callers have to be known. Raises ApiError 400 naming the header.
    """
    body = ask.extension or _NOTHING
    ours = our_headers(headers)
    proposed = ours.get("ticket", "")
    ask.proposed_id = bool(proposed) and _TICKET.fullmatch(proposed) is not None
    ask.id = proposed if ask.proposed_id else new_id()
    if not PASSED_ON.isdisjoint(headers):
        ask.headers = {name: value for name, value in headers.items() if name in PASSED_ON}
    if caller is not None:
        ask.tenant = caller.named(body.tenant, headers)
    else:
        ask.tenant = (body.tenant or ours.get("tenant") or ask.user or "default")[:LONGEST_NAME]
    ask.route = (body.route or ours.get("route") or ask.path.rsplit("/v1/", 1)[-1])[:LONGEST_NAME]
    if ours or ask.extension is not None:  # most requests say nothing of the kind
        _apply_wishes(ask, body, ours, now)


def our_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Our headers, by what follows `OURS`. Raises ApiError 400 for one that is meant to be ours and is not known."""
    ours = {}
    for name in headers:
        if name.startswith(_MEANT):
            ours[name.removeprefix(OURS)] = headers[name]
    for name in ours:
        if name not in _HEADERS:
            said = name if name.startswith(_MEANT) else OURS + name
            raise ApiError(400, f"header {said[:LONGEST_NAME]} is not known here; {_KNOWN}")
    return ours


def _apply_wishes(ask: Ask, body: Extension, ours: Mapping[str, str], now: float) -> None:
    """Write into `ask` what the body's own word and our headers, by what follows `OURS`, want of it."""
    ask.session = (body.session or ours.get("session") or "")[:LONGEST_NAME]
    ask.priority = _priority(body.priority, ours)
    deadlines = [value for value in (body.deadline_ms, _number(ours, "deadline-ms", above=0.0)) if value]
    if deadlines:
        ask.deadline_ms = min(deadlines)
        ask.deadline = now + ask.deadline_ms / 1e3
    sums = [value for value in (body.max_usd, _number(ours, "max-usd", min=0.0)) if value is not None]
    ask.max_usd = min(sums) if sums else None
    ask.placement = _placement(body.placement, ours)
    ask.labels = _labels(body.labels, ours)
    resume = _flag(ours, "resume")
    ask.resume = resume if body.resume is None else body.resume
    ask.speculative = bool(body.speculative) or bool(_flag(ours, "speculative"))


_NOTHING = Extension()
#: A header that is not among these is an error, like a field of the body: a misspelt restriction must not be ignored.
_HEADERS = ("ticket", *(name.replace("_", "-") for name in Extension.__struct_fields__))
#: Names that are meant to be ours, however they are written: gateways of others make `_` of `-`.
_MEANT = (OURS, "x-weighbridge", "x_weighbridge", "weighbridge")
_KNOWN = f"{OURS}* may be {', '.join(_HEADERS)}"


def _priority(inside: int | None, ours: Mapping[str, str]) -> int:
    outside = _number(ours, "priority")
    given = [value for value in (inside, outside) if value is not None]
    return int(max(LOWEST_PRIORITY, min(max(given), HIGHEST_PRIORITY))) if given else 0


def _placement(inside: str | None, ours: Mapping[str, str]) -> Placement:
    outside = ours.get("placement")
    words = [Placement(inside)] if inside is not None else []
    for word in (outside or "").split(","):
        if (word := word.strip()) and outside is not None:
            if word not in _PLACEMENTS:
                raise _unusable("placement", outside, f"use {', '.join(_PLACEMENTS)}")
            words.append(Placement(word))
    if outside is not None and not outside.strip():
        raise _unusable("placement", outside, f"use {', '.join(_PLACEMENTS)}")
    if Placement.ONLY_EDGE in words:
        return Placement.ONLY_EDGE
    chosen = [word for word in words if word is not Placement.AUTO]
    return chosen[0] if chosen else Placement.AUTO


_PLACEMENTS = [str(word) for word in Placement]


def _labels(inside: list[str] | None, ours: Mapping[str, str]) -> frozenset[str]:
    """Labels come beside the prompt, never out of it; their case does not matter."""
    lines = [*(inside or ()), ours.get("labels", "")]
    labels = frozenset(label for line in lines for word in line.split(",") if (label := folded(word)))
    if len(labels) > MAX_LABELS:
        raise ApiError(400, f"weighbridge.labels: at most {MAX_LABELS} can be given", param="weighbridge")
    return labels


def _number(
    ours: Mapping[str, str], name: str, *, min: float = -math.inf, above: float = -math.inf
) -> float | None:
    if name not in ours:
        return None
    value = float(ours[name]) if _NUMBER.fullmatch(ours[name]) else math.nan
    if not (abs(value) < 1e12 and value >= min and value > above):
        raise _unusable(name, ours[name])
    return value


def _flag(ours: Mapping[str, str], name: str) -> bool | None:
    if name not in ours:
        return None
    value = _FLAGS.get(ours[name].strip().lower())
    if value is None:
        raise _unusable(name, ours[name], "use true or false")
    return value


def _unusable(name: str, value: str, remedy: str = "") -> ApiError:
    said = f"header {OURS}{name}: {value[:LONGEST_NAME]!r} is not usable"
    return ApiError(400, f"{said}; {remedy}" if remedy else said)
