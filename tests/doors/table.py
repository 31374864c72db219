"""What a row of the table is, and what is seen when it is sent to a door."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

from tests.doors.client import PATIENCE, NoReply, Reply, exchange, request
from tests.doors.doors import DOORS, KEYS, Door
from tests.doors.reasons import HEADERS, OF_REFUSALS

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES = "/v1/responses"

#: Stands for the name that a door's model has, in paths, headers and bodies.
MODEL = "$MODEL"
#: Stands for a ticket's name that a door's client proposes; another one at each door, with a number behind.
TICKET = "$TICKET"


class _Gone:
    def __repr__(self) -> str:
        return "GONE"  # in names of tests, which must be the same in each process that collects them


#: A value of `chat(...)` that takes the field out of the body.
GONE: Any = _Gone()

Header = tuple[str, str | bytes]


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a short chat, changed as the fields say."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What does it weigh?"}],
        "max_tokens": 4,
        "temperature": 0,
        **fields,
    }
    return {name: value for name, value in body.items() if value is not GONE}


def told(**fields: Any) -> dict[str, Any]:
    """A short chat with these fields of the extension."""
    return chat(weighbridge=fields)


@dataclass(frozen=True, slots=True)
class Want:
    """What a client is to see. What is None is not looked at; `error` says that there is one in OpenAI's shape."""

    status: int
    code: str | None = None
    kind: str | None = None
    param: str | None = None
    error: bool = False
    says: str = ""  # in the error's message
    headers: Mapping[str, str | None] = field(default_factory=dict)  # exact; None: must not be there
    tenant: str | None = None
    priority: int | None = None
    placement: str | None = None  # of the ticket
    left: bool | None = None  # whether anything went to the cloud
    tokens: int | None = None  # of the answer
    choices: int | None = None  # of the ticket
    max_tokens: int | None = None  # of the ticket
    ticket: str | None = None  # its id, as in the row
    body: Callable[[Reply], bool] | None = None
    answered: bool = True  # whether there is an answer at all


def ok(**effects: Any) -> Want:
    return Want(200, **effects)


def bad(
    param: str | None = None, says: str = "", status: int = 400, code: str | None = None, **more: Any
) -> Want:
    return Want(status, code, "invalid_request_error", param, error=True, says=says, left=False, **more)


@dataclass(frozen=True, slots=True)
class Row:
    """One request for every door, and what is wanted of it. `name` is a sentence about it."""

    name: str
    want: Want
    body: Any = None  # JSON, or bytes as they are
    method: str = "POST"
    path: str = CHAT
    headers: tuple[Header, ...] = ()
    key: str | None = None  # the tenant whose key is sent; the doors then ask for keys
    keyed: bool = False  # the doors ask for keys, whatever is sent
    pieces: Callable[[str, str], list[bytes]] | None = (
        None  # (model, host) to raw bytes, instead of all above
    )
    pause: float = 0.0  # seconds between the pieces
    patience: float = PATIENCE  # seconds for the whole answer
    differs: Mapping[str, tuple[str, Want]] = field(default_factory=dict)  # door: (reason, what it answers)
    later: str = ""  # "issue N: ..." that repairs it; until then it must fail
    later_at: tuple[str, ...] = DOORS  # where it does

    @property
    def asks_for_keys(self) -> bool:
        return self.keyed or self.key is not None

    def want_at(self, door: str) -> Want:
        return self.differs[door][1] if door in self.differs else self.want


def at(doors: str, reason: str, want: Want) -> dict[str, tuple[str, Want]]:
    """`differs` for these doors, written with spaces between them."""
    return dict.fromkeys(doors.split(), (reason, want))


@dataclass(frozen=True, slots=True)
class Seen:
    """What came back, and what it did."""

    reply: Reply | None
    failure: str
    ticket: Mapping[str, Any]
    left: bool
    held: Mapping[str, float]

    def fingerprint(self, door: str) -> dict[str, Any]:
        """What must be the same at every door: not the words, but all that a program decides by."""
        reply = self.reply
        if reply is None:
            return {"answered": False}
        error, is_refused = reply.error, bool(reply.error) or reply.status >= 400
        names = {name for name, _ in reply.headers if name in COMPARED}
        names -= {name for name, (_, where) in HEADERS.items() if door in where}
        names -= OF_REFUSALS[1] if is_refused else set()
        print_ = {
            "status": reply.status,
            "error": {name: error.get(name) for name in ("code", "type", "param")} if error else None,
            "headers": sorted(names),
            "content-type": reply.header("content-type"),
            "cache-control": reply.header("cache-control"),
            "left": self.left,
            "held": bool(self.held),
            "body": _shape(reply),
        }
        if self.ticket and not is_refused:
            print_["ticket"] = {name: self.ticket.get(name) for name in TICKET_FIELDS}
        return print_


#: Headers whose presence is compared.
_COMPARED = (
    "allow cache-control content-type retry-after www-authenticate x-accel-buffering x-request-id x-weighbridge-cost "
    "x-weighbridge-degraded x-weighbridge-placement x-weighbridge-replica x-weighbridge-ticket"
)
COMPARED = frozenset(_COMPARED.split())
#: Fields of tickets that are compared.
TICKET_FIELDS = ("tenant", "priority", "choices", "output_tokens", "finish_reason")


def _shape(reply: Reply) -> Any:
    """The keys of a body, and of its first choice."""
    value = reply.json
    if not isinstance(value, dict):
        kinds = [
            event if event == "[DONE]" else "error" if "error" in event else "chunk" for event in reply.events
        ]
        return kinds[-1:]
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    keys = sorted(value) if value.get("object") != "list" else ["data", "object"]
    return [keys, sorted(first), len(choices or ())]


def named(text: str, door: Door) -> str:
    """Text with this door's tickets in it."""
    return re.sub(r"\$TICKET\d", lambda found: md5(f"{door.name}{found[0]}".encode()).hexdigest(), text)


def raw_bytes(row: Row, door: Door) -> list[bytes]:
    host = f"127.0.0.1:{door.port}"
    if row.pieces is not None:
        return row.pieces(door.model, host)
    body = row.body
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers: list[Header] = [
        (name, named(value, door) if isinstance(value, str) else value) for name, value in row.headers
    ]
    if row.key is not None:
        headers.append(("Authorization", f"Bearer {KEYS[row.key]}"))
    if body is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/json"))
    if body is not None:
        body = body.replace(MODEL.encode(), door.model.encode())
    return [request(row.method, row.path.replace(MODEL, door.model), headers, body, host)]


def see(row: Row, door: Door) -> Seen:
    """Send a row to a door and look at everything it does."""
    before = len(door.cloud.calls)
    failure, reply = "", None
    try:
        reply = exchange(door.port, *raw_bytes(row, door), pause=row.pause, patience=row.patience)
    except NoReply as error:
        failure = str(error)
    name = reply.header("x-weighbridge-ticket") if reply else None
    asked_for = row.want_at(door.name).tenant if row.key == "front" else None
    ticket = door.ticket(name, KEYS[row.key or "alice"], asked_for) if name else {}
    return Seen(reply, failure, ticket, len(door.cloud.calls) > before, at_rest(door))


def at_rest(door: Door, patience: float = 5.0) -> Mapping[str, float]:
    """What is still held after `patience` seconds; empty as soon as nothing is."""
    deadline = time.monotonic() + patience
    while (held := door.holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def complaints(row: Row, door: Door, seen: Seen) -> list[str]:
    """Where a door's answer is not as wanted."""
    want, found = row.want_at(door.name), []

    def check(name: str, wanted: Any, got: Any) -> None:
        if wanted is not None and wanted != got:
            found.append(f"{name} is {got!r}, not {wanted!r}")

    if seen.reply is None:
        return [f"there was no answer: {seen.failure}"] if want.answered else []
    reply, error = seen.reply, seen.reply.error
    if not want.answered:
        return [f"there was an answer: {reply.status} {reply.body[:200]!r}"]
    check("the status", want.status, reply.status)
    if want.error or error:
        check("error.code", want.code if want.error else None, error.get("code"))
        if want.error and want.code is None and error.get("code") is not None:
            found.append(f"error.code is {error['code']!r}, not null")
        check("error.type", want.kind, error.get("type"))
        check("error.param", want.param, error.get("param"))
        if want.says and want.says not in str(error.get("message")):
            found.append(f"the message does not say {want.says!r}: {error.get('message')!r}")
        if want.error:
            found += _shape_problems(reply)
    for name, value in want.headers.items():
        if _parts(name, reply.header(name)) != _parts(name, value):
            found.append(f"header {name} is {reply.header(name)!r}, not {value!r}")
    check("the tenant", want.tenant, seen.ticket.get("tenant"))
    check("the priority", want.priority, seen.ticket.get("priority"))
    check("the placement", want.placement, seen.ticket.get("placement"))
    check("the tokens of the answer", want.tokens, seen.ticket.get("output_tokens"))
    check("the choices", want.choices, seen.ticket.get("choices"))
    check("the bound of the answer", want.max_tokens, seen.ticket.get("max_tokens"))
    check("the ticket", want.ticket and named(want.ticket, door), reply.header("x-weighbridge-ticket"))
    check("that something left", want.left, seen.left)
    if want.body is not None and not want.body(reply):
        found.append(f"the body is {reply.body[:300]!r}")
    if seen.held:
        found.append(f"still held: {dict(seen.held)}")
    return found if not found else [*found, f"(the answer was {reply.status} {reply.body[:300]!r})"]


def _parts(name: str, value: str | None) -> Any:
    """A header's value; of a list of methods the order does not matter."""
    return sorted(value.split(", ")) if name == "allow" and value is not None else value


def _shape_problems(reply: Reply) -> list[str]:
    """An error answer is JSON with the four fields, and nothing of our inside."""
    found = []
    if sorted(reply.error) != ["code", "message", "param", "type"]:
        found.append(f"the error has the fields {sorted(reply.error)}")
    if reply.status >= 400 and reply.header("content-type") != "application/json":
        found.append(f"the content-type is {reply.header('content-type')!r}")
    if re.search(r"Traceback|/site-packages/|\.py\b", reply.body.decode("utf-8", "replace")):
        found.append("the error shows our inside")
    return found
