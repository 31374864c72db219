"""The page of weighbridge.yaml: every key that its reader asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from tools.reference.keys import DEFAULTS, KINDS, NAMES, PLACE, PLACES_OWN, REPLICA, SAME, SECTIONS, WORDS
from tools.reference.markdown import MADE, anchor, code, filled, sentence, table, words
from tools.reference.recording import THERE, Asked, Record, record

_INTRODUCTION = """# weighbridge.yaml

{made}

`weighbridge serve --config FILE` serves what such a file describes, `weighbridge config check FILE` says what
is wrong with it, and
`weighbridge init` writes one. Names in capitals are yours. Paths are relative to the file. A key that is not
here is an error.
Where a default is empty, nothing holds unless you set it. The guides: [gateway](../guide/gateway.md),
[routes](../guide/routes.md),
[who may call](../guide/identity.md).
"""

_UNITS = {"ms": "ms", "us": "us", "bytes": "bytes"}


@cache
def page() -> str:
    sections = merged(record())
    parts = [filled(_INTRODUCTION.format(made=MADE))]
    for place, asked in sections.items():
        parts.append(f"## {_title(place)}\n")
        parts.append(SECTIONS[place] + "\n")
        rows = [_row(place, one, sections) for one in asked.values()]
        parts.append(table(("key", "value", "default", "unit", "what it does"), rows))
    return "\n".join(parts)


def merged(found: Record) -> Record:
    """The record without sections that are read in several places, and without what is no setting."""
    told: Record = {}
    for where, asked in found.items():
        place = canonical(where)
        for key, one in asked.items():
            keys = told.setdefault(place, {})
            if key not in keys or keys[key].kind == THERE:
                keys[key] = one
    replica = told[REPLICA]
    told[PLACE] = {key: one for key, one in told[PLACE].items() if key not in replica or key in PLACES_OWN}
    return {place: told[place] for place in SECTIONS if place in told}


def left_out(found: Record) -> set[str]:
    """Sections that the reader entered and that are not on the page."""
    return {canonical(where) for where in found} - set(SECTIONS) - NAMES


def canonical(where: str) -> str:
    """The path of a section by its kind: without numbers, and under the name of the section that it is like."""
    place = re.sub(r"\[\d+\]", "[]", where)
    for pattern, same in SAME:
        place = re.sub(pattern, same, place)
    return place


def _title(place: str) -> str:
    return place or "The file"


def _row(place: str, one: Asked, sections: Mapping[str, object]) -> tuple[str, str, str, str, str]:
    path = f"{place}.{one.key}" if place else one.key
    unit, text = WORDS.get(path, ("", ""))
    if one.knob is not None:
        unit, text = _UNITS.get(one.knob.unit or "", unit), words(sentence(one.knob.help or ""))
    return code(one.key), _value(path, one, sections), _default(path, one), unit, text


def _value(path: str, one: Asked, sections: Mapping[str, object]) -> str:
    kind = KINDS.get(path, one.kind)
    for below in (path, f"{path}[]", *(f"{path}.{name}" for name in ("MODEL", "TENANT", "ROUTE", "NAME"))):
        same = canonical(below)
        if kind in ("section", "sections by name", "list of sections") and same in sections:
            return f"[{kind}](#{anchor(_title(same))})"
    if one.choices:
        kind = ", ".join(code(choice) for choice in one.choices)
    return f"{kind}, {one.bounds}" if one.bounds and kind == one.kind else kind


def _default(path: str, one: Asked) -> str:
    if path in DEFAULTS:
        return code(DEFAULTS[path])
    if one.default in (None, "", ()):
        return ""
    if isinstance(one.default, bool):
        return code(str(one.default).lower())
    return code(f"{one.default:g}" if isinstance(one.default, float) else one.default)
