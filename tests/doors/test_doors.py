"""The same requests at every door: single server, gateway, a route in a gateway, routes alone.

A row fails where a door answers other than wanted, and where two doors answer differently without a reason.
"""

from __future__ import annotations

import pytest

from tests.doors.described import Described
from tests.doors.doors import DOORS, Door
from tests.doors.reasons import HEADERS, MOST, OF_REFUSALS, REASONS
from tests.doors.rows import ROWS
from tests.doors.table import Row, Seen, complaints, see

Doors = dict[bool, dict[str, Door]]

_seen: dict[tuple[str, str], Seen] = {}


def looked(row: Row, door: str, doors: Doors) -> Seen:
    """What a row does at a door; it is sent once."""
    if (row.name, door) not in _seen:
        _seen[row.name, door] = see(row, doors[row.asks_for_keys][door])
    return _seen[row.name, door]


def marks(row: Row, door: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(reason=row.later, strict=True)] if row.later and door in row.later_at else []


CASES = [
    pytest.param(row, door, id=f"{door}-{row.name}", marks=marks(row, door)) for row in ROWS for door in DOORS
]


@pytest.mark.parametrize(("row", "door"), CASES)
def test_a_door_answers_as_wanted(row: Row, door: str, doors: Doors) -> None:
    found = complaints(row, doors[row.asks_for_keys][door], looked(row, door, doors))
    assert not found, "\n".join(found)


COMPARED = [pytest.param(row, id=row.name, marks=marks(row, "all")) for row in ROWS]


@pytest.mark.parametrize("row", COMPARED)
def test_doors_differ_for_a_reason_only(row: Row, doors: Doors) -> None:
    prints = {door: looked(row, door, doors).fingerprint(door) for door in DOORS if door not in row.differs}
    names = {name for print_ in prints.values() for name in print_}
    found = []
    for name in sorted(names):
        values = {door: print_.get(name) for door, print_ in prints.items()}
        if len({repr(value) for value in values.values()}) > 1:
            found.append(f"{name}: {', '.join(f'{door} {value!r}' for door, value in values.items())}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("door", DOORS)
def test_answers_are_as_the_document_says(door: str, doors: Doors) -> None:
    """Every JSON answer of the table beside the schema that /openapi.json has for it; failures are of one shape."""
    described = Described(doors[False][door].get("/openapi.json").json)
    compared = 0
    for row in ROWS:
        reply = looked(row, door, doors).reply
        if reply is not None and row.pieces is None and reply.header("content-type") == "application/json":
            compared += described.holds(row.method, row.path, reply.status, reply.json)
    assert compared > 200, "most rows are compared"


@pytest.mark.parametrize("door", DOORS)
def test_what_is_served_is_in_the_document(door: str, doors: Doors) -> None:
    """Every body of the table that is answered beside the schema that /openapi.json has for it: it may not say more
    closely what a request is than what is served. Which model is asked is told apart: some may go unnamed."""
    described = Described(doors[False][door].get("/openapi.json").json)
    wrong, compared = [], 0
    for row in ROWS:
        reply = looked(row, door, doors).reply
        if reply is None or not 200 <= reply.status < 300 or not isinstance(row.body, dict):
            continue
        try:
            model = doors[False][door].model
            compared += described.takes(row.method, row.path, {**row.body, "model": model})
        except AssertionError as error:
            wrong.append(f"{row.name}: {error}")
    assert not wrong, "\n\n".join(wrong)
    assert compared > 100, "most rows are compared"


def test_reasons_are_few_and_all_of_them_are_used() -> None:
    used = {reason for row in ROWS for reason, _ in row.differs.values()}
    used |= {reason for reason, _ in HEADERS.values()} | {OF_REFUSALS[0]}
    assert used == set(REASONS)
    assert len(REASONS) <= MOST


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
