"""Postal addresses, which are found in pieces: street, number, town and code become one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from weighbridge.routes.privacy.hits import Hit
from weighbridge.routes.privacy.shapes.pattern import LETTER, W, as_bytes, compiled

#: What may stand between two pieces of one address: punctuation, line ends, marks of quoted mail.
_GLUE = compiled(r"[\s,.;#/>|-]{0,8}")
#: What may follow a street: unit, town, region, country, each on its line or behind a comma, and at last a
#: postal code. Without the code nothing is taken.
_TAIL = compiled(
    rf"((?:[ ,>|?]{{0,4}}[\n,][ ,>|?]{{0,6}}[{LETTER}_][^\n0-9,>]{{0,30}}){{0,4}}[\s,>]{{1,6}}(?:[A-Z]{{1,2}}-)?"
    rf"\d{{4,6}}(?:-\d{{4}})?)(?:\z|[^{W}])"
)
#: A house number or code directly before a street.
_HEAD = compiled(rf"(?:^|[^{W}])(\d{{1,6}}[A-Za-z]?,? {{1,2}})\z")
#: What either of them reaches at most.
_FAR_BEFORE, _FAR_BEHIND = 11, 240


def join_addresses(text: str, hits: Iterable[Hit]) -> list[Hit]:
    """City, state and postal code beside a street belong to the address; on their own they are places.

    `hits`: without overlap, in order.
    """
    joined: list[Hit] = []
    for hit in hits:
        last = joined[-1] if joined else None
        if last and hit.start < last.end:  # swallowed by the tail of the address before
            joined[-1] = Hit(last.start, max(last.end, hit.end), last.type, last.detector, last.rank)
            continue
        if last and _belong(text, last, hit):
            kind = "ADDRESS" if "ADDRESS" in (last.type, hit.type) else "LOCATION"
            joined[-1] = _whole(text, Hit(last.start, hit.end, kind, hit.detector, max(last.rank, hit.rank)))
        else:
            joined.append(_whole(text, hit))
    return joined


def _belong(text: str, last: Hit, hit: Hit) -> bool:
    if not {last.type, hit.type} <= {"ADDRESS", "LOCATION"} or hit.start - last.end > 8:
        return False
    return _GLUE.fullmatch(as_bytes(text[last.end : hit.start])) is not None


def _whole(text: str, hit: Hit) -> Hit:
    """A street with the number before it and the town and code behind it."""
    if hit.type != "ADDRESS":
        return hit
    before = max(0, hit.start - _FAR_BEFORE)
    head = _HEAD.search(as_bytes(text[before : hit.start]))
    tail = _TAIL.match(as_bytes(text[hit.end : hit.end + _FAR_BEHIND]))
    start = before + head.start(1) if head else hit.start
    return Hit(start, hit.end + tail.end(1) if tail else hit.end, hit.type, hit.detector, hit.rank)
