"""API keys, at doors that ask for them."""

from __future__ import annotations

import base64
from dataclasses import replace

from tests.doors.doors import CONFIGURED, EXPIRED, KEYS
from tests.doors.rows.extension import header
from tests.doors.table import COMPLETIONS, EMBEDDINGS, Header, Row, Want, at, bad, chat, ok, told

NO_KEY = Want(401, "invalid_api_key", "invalid_request_error", error=True, left=False)
ALICE = KEYS["alice"]
GUEST = base64.b64encode(f"alice:{ALICE}".encode()).decode()
#: Somebody with limits by the minute, at the doors that have any.
LIMITED = ok(
    headers={"x-ratelimit-limit-requests": "1000", "x-ratelimit-limit-tokens": "900000"},
    body=lambda reply: 0 < int(reply.header("x-ratelimit-remaining-requests") or 0) < 1000,
)
UNLIMITED = at("single", "short words", ok(headers={"x-ratelimit-limit-requests": None}))


def auth(*values: str | bytes) -> tuple[Header, ...]:
    return tuple(("Authorization", value) for value in values)


def wrong_key(name: str, *values: str | bytes) -> Row:
    return Row(name, NO_KEY, chat(), headers=auth(*values), keyed=True)


def right_key(name: str, *values: str | bytes) -> Row:
    return Row(name, ok(tokens=4, tenant="alice"), chat(), headers=auth(*values), keyed=True)


def behind_the_key(what: str, method: str, path: str) -> list[Row]:
    return [
        Row(f"{what} without a key", NO_KEY, method=method, path=path, keyed=True),
        Row(
            f"{what} with a wrong key",
            NO_KEY,
            method=method,
            path=path,
            keyed=True,
            headers=auth("Bearer wrong"),
        ),
    ]


KEY_ROWS = [
    wrong_key("no key"),
    right_key("a key", f"Bearer {ALICE}"),
    right_key("a key after `bearer`", f"bearer {ALICE}"),
    right_key("a key after `BEARER`", f"BEARER {ALICE}"),
    right_key("a key after two spaces", f"Bearer  {ALICE}"),
    right_key("a key with a space behind", f"Bearer {ALICE} "),
    wrong_key("a bare key", ALICE),
    wrong_key("a key after a colon", f"Bearer: {ALICE}"),
    wrong_key("a key without the space", f"Bearer{ALICE}"),
    wrong_key("a key in quotes", f'Bearer "{ALICE}"'),
    wrong_key("`Bearer` alone", "Bearer"),
    wrong_key("`Bearer` and a space", "Bearer "),
    wrong_key("an empty key", ""),
    wrong_key("a basic key", f"Basic {GUEST}"),
    wrong_key("a token of another scheme", f"Token {ALICE}"),
    wrong_key("a wrong key", "Bearer key-of-mallory"),
    wrong_key("half a key", f"Bearer {ALICE[:-1]}"),
    wrong_key("a key and more", f"Bearer {ALICE}x"),
    wrong_key("a key in capitals", f"Bearer {ALICE.upper()}"),
    wrong_key("two keys in one line", f"Bearer {ALICE} {ALICE}"),
    wrong_key("a wrong key and a right one", "Bearer wrong", f"Bearer {ALICE}"),
    wrong_key("a right key and a wrong one", f"Bearer {ALICE}", "Bearer wrong"),
    wrong_key("a key of bytes that are no text", b"Bearer \xff\xfe"),
    wrong_key("a key of 60,000 characters", "Bearer " + "x" * 60_000),
    wrong_key("a tenant's name for a key", "Bearer alice"),
    wrong_key("the command line's own word", f"Bearer alice={ALICE}"),
    Row("a key with a letter of elsewhere", ok(tenant="carol"), chat(), key="carol"),
    Row("limits are told", LIMITED, chat(), key="carol", differs=UNLIMITED),
    Row("limits are told of a stream", LIMITED, chat(stream=True), key="carol", differs=UNLIMITED),
    Row("no limits are none", ok(headers={"x-ratelimit-limit-requests": None}), chat(), key="alice"),
    Row(
        "a key that base64 has padded",
        ok(tokens=4, tenant="dave"),
        chat(),
        key="dave",
        differs=at("single", "short words", ok(tokens=4, tenant="default")),
    ),
    wrong_key("the padding of somebody's key", "Bearer ="),
    Row(
        "a key that has expired",
        replace(NO_KEY, code="expired_api_key"),
        chat(),
        headers=auth(f"Bearer {EXPIRED}"),
        keyed=True,
        differs=at("single", "short words", NO_KEY),
    ),
    Row(
        "a key and two hosts",
        Want(400, "no_host", "invalid_request_error", error=True, left=False),
        chat(),
        headers=(*auth(f"Bearer {ALICE}"), ("Host", "a.example"), ("Host", "b.example")),
        keyed=True,
    ),
    Row("a key and another tenant in the body", ok(tenant="alice"), told(tenant="bob"), key="alice"),
    Row(
        "a key and another tenant in a header",
        ok(tenant="alice"),
        chat(),
        key="alice",
        headers=header("tenant", "bob"),
    ),
    Row("a key and another user", ok(tenant="alice"), chat(user="bob"), key="alice"),
    Row("a gateway's key and a tenant in the body", ok(tenant="ann"), told(tenant="ann"), key="front"),
    Row(
        "a gateway's key and a tenant in a header",
        ok(tenant="ann"),
        chat(),
        key="front",
        headers=header("tenant", "ann"),
    ),
    Row(
        "a gateway's key and two tenants in headers",
        bad(),
        chat(),
        headers=header("tenant", "ann", "ben"),
        key="front",
    ),
    Row("a gateway's key and a user", ok(tenant="front"), chat(user="ann"), key="front"),
    Row(
        "a gateway's key and a class",
        ok(tenant="ann", priority=-7),
        told(tenant="ann", priority=-7),
        key="front",
    ),
    Row("a watcher's key and a tenant in the body", ok(tenant="eyes"), told(tenant="ann"), key="eyes"),
    Row("a key that is known by its hash", ok(tenant="bob"), chat(), key="bob"),
    wrong_key("the hash of a key", f"Bearer {CONFIGURED['bob']}"),
    wrong_key("the digits of a key's hash", f"Bearer {CONFIGURED['bob'].removeprefix('sha256:')}"),
    Row("a wrong key and half a body", NO_KEY, b'{"model"', headers=auth("Bearer wrong"), keyed=True),
    Row(
        "a wrong key and an unknown model",
        NO_KEY,
        chat(model="nobody"),
        headers=auth("Bearer wrong"),
        keyed=True,
    ),
    Row("a wrong key and a stream", NO_KEY, chat(stream=True), headers=auth("Bearer wrong"), keyed=True),
    *behind_the_key("a completion", "POST", COMPLETIONS),
    *behind_the_key("an embedding", "POST", EMBEDDINGS),
    *behind_the_key("the list of models", "GET", "/v1/models"),
    *behind_the_key("one model", "GET", "/v1/models/$MODEL"),
    *behind_the_key("a model that is not there", "GET", "/v1/models/nobody"),
    *behind_the_key("the list of tickets", "GET", "/v1/tickets"),
    *behind_the_key("usage", "GET", "/v1/usage"),
    Row(
        "one's own usage alone",
        ok(body=lambda reply: {row["tenant"] for row in reply.json["data"]} <= {"bob"}),
        method="GET",
        path="/v1/usage",
        key="bob",
    ),
    Row(
        "somebody else's usage",
        Want(403, "figures_of_others", "permission_error", "tenant", error=True),
        method="GET",
        path="/v1/usage?tenant=alice",
        key="bob",
    ),
    *behind_the_key("a ticket", "GET", "/v1/tickets/" + "0" * 32),
    Row(
        "health without a key",
        ok(),
        method="GET",
        path="/health",
        keyed=True,
        differs=at("gateway route routes", "says more", ok()),
    ),
    Row("the page without a key", ok(), method="GET", path="/", keyed=True),
    Row(
        "an unknown path without a key",
        Want(404, "not_found", error=True),
        method="GET",
        path="/v1/nothing",
        keyed=True,
    ),
    Row("an urgent class that a tenant was not given", ok(priority=0), told(priority=-5), key="alice"),
    Row(
        "an urgent class in a header that a tenant was not given",
        ok(priority=0),
        chat(),
        headers=header("priority", "-999999"),
        key="alice",
    ),
    Row("a patient class with a key", ok(priority=7), told(priority=7), key="alice"),
    Row("a list of models with a key", ok(), method="GET", path="/v1/models", key="alice"),
]
