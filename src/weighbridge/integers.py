"""Integers that are written as 16.0 or 1.6e1: JSON has one kind of number, and JSON Schema calls these integers.

A decoder of typed JSON refuses them. What it refused is written anew here, at the place that it named and in the other
elements of the same list; everything else in a body stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

#: Places of one body that are written anew; each costs a look at all of it.
MAX_PLACES = 16
#: Beyond this a fraction cannot tell neighbours apart, so that it says no integer.
_EXACT = float(2**53)
_REFUSED = re.compile(r"Expected `(?:[^`]*\| )?int(?: \|[^`]*)?`, got `float` - at `\$([^`]*)`\Z")
_STEP = re.compile(r"\[(?:\.\.\.|\d+)\]|\.[^.\[]+")

_encode, _decode = msgspec.json.encode, msgspec.json.decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_holder = msgspec.json.Decoder(list[msgspec.Raw] | dict[str, msgspec.Raw]).decode


def with_integers(body: bytes, problem: str) -> bytes | None:
    """Return `body` with an integer where the decoder's `problem` says that a fraction stands; None: it is another
    problem, or the number is no integer."""
    match = _REFUSED.search(problem)
    if match is None:
        return None
    steps = _STEP.findall(match[1])
    if "".join(steps) != match[1]:
        return None  # a name with a dot or a bracket in it
    written = _rewritten(msgspec.Raw(body), steps)
    return None if written is None else bytes(written)


def _rewritten(raw: msgspec.Raw, steps: Sequence[str]) -> msgspec.Raw | None:
    """What is at the end of `steps` as an integer; None: nothing changes."""
    if not steps:
        value = _decode(raw)
        whole = isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT
        return msgspec.Raw(b"%d" % int(value)) if whole else None
    if steps[0].startswith("."):
        fields, name = _fields(raw), steps[0][1:]
        changed = _rewritten(fields[name], steps[1:]) if name in fields else None
        return None if changed is None else msgspec.Raw(_encode({**fields, name: changed}))
    return _rewritten_each(raw, steps[1:])


def _rewritten_each(raw: msgspec.Raw, steps: Sequence[str]) -> msgspec.Raw | None:
    """The elements of a list, or values of an object, are of one type: the decoder names but the first."""
    held = _holder(raw)
    places = held.items() if isinstance(held, dict) else enumerate(held)
    each: dict[str | int, msgspec.Raw | None] = {key: _tried(value, steps) for key, value in places}
    new = {key: value for key, value in each.items() if value is not None}
    if not new:
        return None
    whole = {**held, **new} if isinstance(held, dict) else [new.get(at, old) for at, old in enumerate(held)]
    return msgspec.Raw(_encode(whole))


def _tried(raw: msgspec.Raw, steps: Sequence[str]) -> msgspec.Raw | None:
    """An element may be of another type, which has no such place."""
    try:
        return _rewritten(raw, steps)
    except msgspec.MsgspecError:
        return None
