"""Who asks, where no key says it, and which ticket the client wants."""

from __future__ import annotations

from tests.doors.rows.extension import header
from tests.doors.table import TICKET, Row, bad, chat, ok, told

FIRST, SECOND = f"{TICKET}1", f"{TICKET}2"


def other_ticket(name: str, *proposed: str) -> Row:
    """A proposal that is not to be had: the request is served under a fresh name."""
    return Row(
        name,
        ok(tokens=4, body=lambda reply: reply.header("x-weighbridge-ticket") not in (None, *proposed)),
        chat(),
        headers=header("ticket", *proposed),
    )


CALLER = [
    Row("nobody says who asks", ok(tenant="default"), chat()),
    Row("a tenant in the body", ok(tenant="ann"), told(tenant="ann")),
    Row("a tenant in a header", ok(tenant="ann"), chat(), headers=header("tenant", "ann")),
    *(
        Row(f"two lines of one {name}", bad(), chat(), headers=header(name, "ann", "ann"))
        for name in ("tenant", "route", "session")
    ),
    Row("OpenAI's user, which is no tenant", ok(tenant="default"), chat(user="ann")),
    Row(
        "a tenant in the body, another in a header",
        ok(tenant="ann"),
        told(tenant="ann"),
        headers=header("tenant", "ben"),
    ),
    Row(
        "a tenant in a header, another as the user",
        ok(tenant="ann"),
        chat(user="ben"),
        headers=header("tenant", "ann"),
    ),
    Row("an empty user", ok(tenant="default"), chat(user="")),
    Row("an empty tenant in a header", ok(tenant="default"), chat(), headers=header("tenant", "")),
    Row("an empty tenant in the body", bad("weighbridge"), told(tenant="")),
    Row("a number as the tenant", bad("weighbridge"), told(tenant=7)),
    Row("a tenant of 201 characters", bad("weighbridge"), told(tenant="x" * 201)),
    Row(
        "a header's tenant of 300 characters",
        ok(tenant="x" * 200),
        chat(),
        headers=header("tenant", "x" * 300),
    ),
    Row("a user of 300 characters", ok(tenant="default"), chat(user="x" * 300)),
    Row("a tenant with a letter of elsewhere", ok(tenant="jörg"), told(tenant="jörg")),
    Row(
        "a header's tenant with a letter of elsewhere",
        ok(tenant="jörg"),
        chat(),
        headers=header("tenant", "jörg"),
    ),
    Row("a ticket of the client's", ok(ticket=FIRST), chat(), headers=header("ticket", FIRST)),
    Row(
        "a ticket of the client's for a stream",
        ok(ticket=SECOND),
        chat(stream=True),
        headers=header("ticket", SECOND),
    ),
    other_ticket("a ticket that is in use", FIRST),
    other_ticket("a ticket that is too short", "0" * 31),
    other_ticket("a ticket that is too long", "0" * 33),
    other_ticket("a ticket in capitals", "ABCDEF" + "0" * 26),
    other_ticket("a ticket that is a path", "../../../etc/passwd"),
    other_ticket("an empty ticket", ""),
    other_ticket("two lines of tickets", "1" * 32, "2" * 32),
]
