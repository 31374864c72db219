"""Changes of JSON values that keep them JSON: another type, another count, a field gone, doubled or moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz.forms import INPUT_BYTES

#: Numbers at which something may end, and values of each type.
_NUMBERS = (
    *(-1, 0, 1, 2, 3, 31, 32, 33, 127, 128, 255, 256, 65_535, 65_536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
)
_OTHERS = (
    None,
    True,
    False,
    "",
    "a",
    " ",
    "0",
    "é",
    "東京",
    "\ud800",
    "\0",
    "x" * 300,
    [],
    {},
    [0],
    [[]],
    {"a": 1},
)
#: How often something more is there.
_COUNTS = (1, 2, 3, 8, 20, 70)
#: Changes made to one input.
_MOST_CHANGES = 3


@dataclass(slots=True)
class _Place:
    """An entry of a list or of an object."""

    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    @value.setter
    def value(self, value: Any) -> None:
        self.holder[self.key] = value


def _places(value: Any) -> list[_Place]:
    found: list[_Place] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = (
            list(holder)
            if isinstance(holder, dict)
            else range(len(holder))
            if isinstance(holder, list)
            else ()
        )
        found += [_Place(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


def changed(value: Any, draw: Random, pieces: Sequence[Any]) -> Any:
    """Return `value`, which is changed in place; `pieces` are values that the format has somewhere."""
    for _ in range(draw.randint(1, _MOST_CHANGES)):
        root = [value]
        places = _places(root)
        if draw.random() < 0.98 and len(places) > 1:
            places = places[1:]
        place = draw.choice(places)
        _CHANGES[draw.randrange(len(_CHANGES))](place, draw, places, pieces)
        value = root[0] if root else None
    return value


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _other_type(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    place.value = _copied(draw.choice((*_NUMBERS, *_OTHERS)))


def _like(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    """A number becomes another number, a text another text, and a list or an object has another count."""
    value = place.value
    if isinstance(value, bool):
        place.value = not value
    elif isinstance(value, int | float):
        near = [value + 1, value - 1, value * 2, -value] if abs(value) < 2**64 else [0]
        place.value = draw.choice(near) if draw.random() < 0.6 else draw.choice(_NUMBERS)
    elif isinstance(value, str):
        place.value = _text(value, draw, places, pieces)
    elif isinstance(value, list) and value:
        place.value = (
            value * draw.choice((2, 3, 40)) if draw.random() < 0.5 else draw.sample(value, len(value))
        )
    elif isinstance(value, dict) and value:
        name = draw.choice(list(value))
        value.update({f"{name}{number}": _copied(value[name]) for number in range(draw.choice(_COUNTS))})


def _text(text: str, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> str:
    at, end = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
    texts = [one for one in pieces if isinstance(one, str)]
    texts += [str(place.key) for place in places if isinstance(place.key, str)]
    texts += [place.value for place in places if isinstance(place.value, str)]
    change = draw.randrange(5)
    if change == 0:
        return text[:at] + text[end:]
    if change == 1:
        return text[:at] + chr(draw.choice((draw.randrange(32, 127), draw.randrange(0xD800)))) + text[at:]
    if change == 2 and texts:
        return text[:at] + draw.choice(texts) + text[end:]
    if change == 3:
        return text[:at] + text[at:end] * draw.choice((2, 3, 50)) + text[end:]
    return draw.choice(texts) if texts else text


def _gone(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    del place.holder[place.key]


def _renamed(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    if isinstance(place.holder, dict):
        name = _text(place.key, draw, places, pieces)
        place.holder[name] = place.holder.pop(place.key)


def _doubled(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    if isinstance(place.holder, list):
        place.holder.insert(place.key, _copied(place.value))
    else:
        place.holder[_text(place.key, draw, places, pieces)] = _copied(place.value)


def _moved(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    """What stands at another place stands here too."""
    place.value = _copied(draw.choice(places).value)


def _piece(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    """Something that the format has, here or beside it; a field and its value where it is an object of one."""
    if not pieces:
        return
    piece = _copied(draw.choice(pieces))
    value = place.value
    if isinstance(piece, dict) and isinstance(value, dict) and draw.random() < 0.7:
        value.update(piece)
    elif isinstance(value, list) and draw.random() < 0.7:
        value.insert(draw.randint(0, len(value)), piece)
    else:
        place.value = piece


def _wrapped(place: _Place, draw: Random, places: Sequence[_Place], pieces: Sequence[Any]) -> None:
    value = place.value
    if isinstance(value, list | dict) and value and draw.random() < 0.5:
        place.value = value[0] if isinstance(value, list) else next(iter(value.values()))
    else:
        place.value = [value] if draw.random() < 0.5 else {"a": value}


_CHANGES = (*(_other_type, _like, _like, _like, _gone, _renamed, _doubled, _moved, _piece, _piece, _wrapped),)


def changed_json(data: bytes, draw: Random, pieces: Sequence[Any]) -> bytes | None:
    """Return JSON text with something changed; None for what is no JSON."""
    try:
        value = json.loads(data)
        made = written(changed(value, draw, pieces))
    except (ValueError, RecursionError):
        return None
    return made if len(made) <= INPUT_BYTES else None


def written(value: Any) -> bytes:
    """Return `value` as short JSON; half of a surrogate pair is escaped, as it can be in a file."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
