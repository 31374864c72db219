"""From where a door may be asked: web pages and host names, where no keys are on and the address is a loopback one."""

from __future__ import annotations

from tests.doors.doors import KEYS
from tests.doors.rows.keys import NO_KEY, auth
from tests.doors.table import Header, Row, Want, at, chat, ok

NO_HOST = Want(403, "host_not_allowed", "invalid_request_error", error=True, left=False)
NO_ORIGIN = Want(403, "origin_not_allowed", "invalid_request_error", error=True, left=False)
NO_FIGURES = Want(403, "figures_of_others", "invalid_request_error", error=True, left=False)
PREFLIGHT = (("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization"))


def host(*values: str) -> tuple[Header, ...]:
    return tuple(("Host", value) for value in values)


def origin(value: str) -> tuple[Header, ...]:
    return (("Origin", value),)


ACCESS = [
    *(
        Row(f"the host {value!r}", ok(tokens=4), chat(), headers=host(value))
        for value in ("localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:9", "[::1]:8000", "app.localhost")
    ),
    *(
        Row(f"the host {value!r}", NO_HOST, chat(), headers=host(value))
        for value in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil.example:127",
            "10.0.0.1",
            "0x7f.1",
            "127.0.0.1, evil.example",
            "evil@127.0.0.1",
        )
    ),
    Row(
        "two hosts, the first one foreign",
        Want(403, left=False),
        chat(),
        headers=host("evil.example", "localhost"),
    ),
    Row(
        "two hosts, the second one foreign",
        Want(403, left=False),
        chat(),
        headers=host("localhost", "evil.example"),
    ),
    *(
        Row(f"a script of {value}", ok(tokens=4), chat(), headers=origin(value))
        for value in ("http://localhost:3000", "http://127.0.0.1", "https://[::1]:8", "http://app.localhost")
    ),
    *(
        Row(f"a script of {value!r}", NO_ORIGIN, chat(), headers=origin(value))
        for value in (
            "http://evil.example",
            "null",
            "http://[",
            "http://localhost:x@evil.example",
            "",
            "http://localhost.evil.example",
            "http://127.0.0.1@evil.example",
            "http://evil.example#localhost",
            "file://",
            "localhost",
            "http://evil.example, http://localhost",
            "chrome-extension://abcdef",
        )
    ),
    *(
        Row(
            f"a script of elsewhere asks for {path}",
            NO_ORIGIN,
            method="GET",
            path=path,
            headers=origin("http://evil.example"),
        )
        for path in ("/v1/models", "/v1/tickets", "/v1/load", "/metrics")
    ),
    Row(
        "a page of elsewhere asks whether it may",
        Want(405, error=True, headers={"access-control-allow-origin": None}),
        method="OPTIONS",
        headers=(*origin("http://evil.example"), *PREFLIGHT),
    ),
    Row(
        "a key and a script of elsewhere",
        ok(tokens=4),
        chat(),
        key="alice",
        headers=origin("http://evil.example"),
    ),
    Row("a key and another host", ok(tokens=4), chat(), key="alice", headers=host("weighbridge.example")),
    Row(
        "no key and a script of elsewhere", NO_KEY, chat(), keyed=True, headers=origin("http://evil.example")
    ),
    Row("metrics without a key, on this machine", ok(), method="GET", path="/metrics", keyed=True),
    *(
        Row(
            f"{path} with the key of {tenant}, from elsewhere",
            want,
            method="GET",
            path=path,
            headers=(*auth(f"Bearer {KEYS[tenant]}"), ("X-Forwarded-For", "203.0.113.9")),
            keyed=True,
            differs=at("gateway route routes", "says more", want) if path == "/v1/load" else {},
        )
        for path, tenant, want in (
            ("/metrics", "bob", NO_FIGURES),
            ("/metrics", "front", NO_FIGURES),
            ("/metrics", "eyes", ok()),
            ("/v1/load", "bob", ok(body=lambda reply: "models" not in reply.json)),
            ("/v1/load", "eyes", ok()),
        )
    ),
]
