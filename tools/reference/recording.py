"""What the reader of weighbridge.yaml asks for: every key with its type, default and bounds.

The reader itself is run over `EXAMPLE`, whose sections are those that recognise themselves: `RecordingSection` notes
each question before it is answered. So a key that the reader learns to know is in the record, and one that it forgets
is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.config import reader
from weighbridge.fleet.config.reader import Section
from weighbridge.knobs import Knob, knobs
from weighbridge.routes.config import parse_configuration
from weighbridge.secret import Secret

#: Enters every section once; names stand for those that an operator gives.
EXAMPLE: dict[str, Any] = {
    "models": {
        "MODEL": {
            "tokenizer": ".",
            "replicas": [
                {
                    "url": "http://127.0.0.1:1",
                    "model": "there",
                    "traces": True,
                    "kv_events": "tcp://127.0.0.1:1",
                    "kv_replay": "tcp://127.0.0.1:1",
                    "abilities": {one.value: True for one in Ability},
                    "capacity": {
                        "step_cost": dict.fromkeys(
                            ("overhead", "memory", "per_token", "per_context_token", "per_sequence"), 0.0
                        )
                    },
                },
                {"name": "started", "process": "here", "options": {}},
                {"name": "within", "engine": "here"},
                {"name": "actors", "ray": "here"},
            ],
        }
    },
    "on_demand": {},
    "tenants": {"TENANT": {"keys": [{"key": "a-key-of-an-example-that-is-long"}]}},
    "shared_limits": {"redis": "redis://127.0.0.1:1"},
    "routes": {
        "ROUTE": {
            "places": [
                {"name": "here", "level": "edge", "model": "MODEL"},
                {"name": "far", "level": "cloud", "url": "http://127.0.0.1:2", "model": "there"},
            ],
            "rules": [{}],
            "threshold": 0.5,
            "caps": {"cloud_share": 0.5},
        },
        "SHORT": {"edge": {"process": "one"}, "cloud": {"process": "another"}},
    },
    "budgets": {"tenants": {"NAME": {"usd_per_day": 1}}, "routes": {"NAME": {"usd_per_day": 1}}},
}


#: The kind of a key of which was asked only whether it is there: the example must enter what reads it.
THERE = ""


#: What cannot stand beside the rest: everything that gateways share in place of limits alone.
SHARED: dict[str, Any] = {
    "admin_key": "a-key-of-an-example-that-is-long",
    "shared": {"redis": "redis://127.0.0.1:1"},
    "models": {
        "MODEL": {
            "discover": [
                {"dns": "engines.internal:8000", "replica": {}},
                {"kubernetes": "serving/engines", "port": "http", "replica": {}},
            ]
        }
    },
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A key as it was asked for. `knob`: the setting that it is, which has its own words."""

    key: str
    kind: str
    default: Any = None
    bounds: str = ""
    choices: tuple[str, ...] = ()
    knob: Knob | None = None


#: Sections, by their path and in the order of the reader; in each its keys in that order.
Record = dict[str, dict[str, Asked]]


def record() -> Record:
    """Run the reader over the examples. Raises BadInput if it finds anything wrong with them."""
    found: Record = {}
    with _recording(found):
        for example in (EXAMPLE, SHARED):
            parse_configuration(yaml.safe_dump(example, sort_keys=False), "example", Path())
    return found


class RecordingSection(Section):
    """Notes what it is asked for. The first question about a key counts, unless it is only whether it is there."""

    found: ClassVar[Record] = {}

    def _note(self, key: str, kind: str, default: Any = None, **more: Any) -> None:
        place = self.found.setdefault(self.where, {})
        if key not in place or (place[key].kind == THERE and kind != THERE):
            place.pop(key, None)
            place[key] = Asked(key, kind, _plain(default), **more)

    def __contains__(self, name: str) -> bool:
        self._note(name, THERE)
        return super().__contains__(name)

    def text(self, name: str, default: str = "") -> str:
        self._note(name, "text", default)
        return super().text(name, default)

    def number(self, name: str, default: Any, *, least: float = 0.0, above: float | None = None) -> Any:
        bounds = f"more than {above:g}" if above is not None else f"at least {least:g}"
        self._note(name, "number", default, bounds=bounds)
        return super().number(name, default, least=least, above=above)

    def count(self, name: str, default: Any, *, least: int = 1) -> Any:
        self._note(name, "whole number", default, bounds=f"at least {least}")
        return super().count(name, default, least=least)

    def flag(self, name: str, default: bool) -> bool:
        self._note(name, "true or false", default)
        return super().flag(name, default)

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        self._note(name, "choice", default, choices=tuple(map(str, known)))
        return super().choice(name, default, known)

    def texts(self, name: str) -> tuple[str, ...]:
        self._note(name, "list of texts")
        return super().texts(name)

    def numbers(self, name: str) -> dict[str, float]:
        self._note(name, "numbers by name")
        return super().numbers(name)

    def secret(self, name: str) -> Secret | None:
        self._note(name, "secret text")
        self._note(f"{name}_env", "name of a variable")
        return super().secret(name)

    def secrets(self, name: str) -> dict[str, Secret]:
        self._note(name, "secret texts by name")
        return super().secrets(name)

    def path(self, name: str, base: Path, *, must_exist: bool) -> Path | None:
        self._note(name, "path")
        return super().path(name, base, must_exist=must_exist)

    def section(self, name: str) -> Section:
        self._note(name, "section")
        return super().section(name)

    def named(self, name: str) -> Iterator[tuple[str, Section]]:
        self._note(name, "sections by name")
        return super().named(name)

    def items(self, name: str) -> Iterator[Section]:
        self._note(name, "list of sections")
        return super().items(name)

    def plain(self, name: str) -> Any:
        self._note(name, "value")
        return super().plain(name)

    def settings(self, kind: type[Any]) -> Any:
        for one in knobs(kind):
            self._note_knob(one.key, one)
        return super().settings(kind)

    def fields(self, kind: type[Any], base: Path) -> dict[str, Any]:
        for one in knobs(kind):
            self._note_knob(one.name if one.repeats else one.key, one)
        return super().fields(kind, base)

    def _note_knob(self, key: str, one: Knob) -> None:
        kinds = {bool: "true or false", int: "whole number", float: "number", Path: "path", str: "text"}
        kind = "size, such as 2GiB" if one.unit == "bytes" else kinds[one.kind]
        kind = f"list of {kind}s" if one.repeats else kind
        sides = (("at least", one.min), ("at most", one.max))
        bounds = ", ".join(f"{side} {bound:g}" for side, bound in sides if bound is not None)
        default = None if one.repeats else one.write(one.default)
        self._note(key, kind, default, bounds=bounds, choices=one.choices, knob=one)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


@contextmanager
def _recording(found: Record) -> Iterator[None]:
    """Have the reader make sections that note their questions."""
    before = reader.Section
    RecordingSection.found = found
    reader.Section = RecordingSection  # type: ignore[misc]
    try:
        yield
    finally:
        reader.Section = before  # type: ignore[misc]
