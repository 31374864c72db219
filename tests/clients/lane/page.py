"""The table of docs/guide/clients.md, from what a run of the lane found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.clients.drivers.contract import STEPS
from tests.clients.lane.site import DOORS
from tests.clients.lane.table import CLIENTS

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "clients.md"
_TABLE = re.compile(r"(<!-- clients -->\n).*?(<!-- end -->)", re.DOTALL)

Told = Mapping[str, Mapping[str, Mapping[str, Any]]]


def written(found: Told) -> None:
    """Put the table of a run between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    made = table(found)
    PAGE.write_text(_TABLE.sub(lambda match: match[1] + made + match[2], text), encoding="utf-8")


def table(found: Told) -> str:
    """A row for each client: yes where a step passed at every door, the doors where it did not, a dash where the
    client has no way to take it. One that was never run has none."""
    head = ["client", "speaks", *STEPS]
    lines = [_row(head), _row(["---"] * len(head))]
    ran = {name: told for name, told in found.items() if any("versions" in one for one in told.values())}
    lines += [_row([_name(name, told), CLIENTS[name].speaks, *_cells(told)]) for name, told in ran.items()]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(name: str, told: Mapping[str, Mapping[str, Any]]) -> str:
    versions = next((one["versions"] for one in told.values() if "versions" in one), {})
    own, *others = versions.items()
    beside = f" ({', '.join(f'{other} {version}' for other, version in others)})" if others else ""
    return f"{CLIENTS[name].title} {own[1]}{beside}"


def _cells(told: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for step in STEPS:
        if any(step in one.get("cannot", {}) for one in told.values()):
            yield "–"
            continue
        wrong = [door for door in DOORS if told.get(door, {}).get("steps", {}).get(step) is not True]
        yield "yes" if not wrong else f"not: {', '.join(wrong)}"
