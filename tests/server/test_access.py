"""Pages with figures, foreign hosts and scripts of other sites, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.backends import Backend, body, clients, fleet
from weighbridge.wire.identity import callers

CHAT = "/v1/chat/completions"
KEYS = "tenants: {alice: {keys: [{key: alices-long-key}]}, watcher: {key: watchers-long-key}}\nwatchers: [watcher]"
WATCHED = ("/metrics", "/v1/load", "/console/api/now")


async def test_a_web_page_cannot_reach_a_loopback_server_without_keys() -> None:
    async with fleet(Backend("a")) as front:
        for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
            async with front.client.post(front.url + CHAT, json=body(CHAT), headers=headers) as answer:
                assert answer.status == 403, headers
                assert (await answer.json())["error"]["code"] in ("host_not_allowed", "origin_not_allowed")
            async with front.client.get(front.url + "/v1/models", headers=headers) as answer:
                assert answer.status == 403, headers
        async with front.post(headers={"origin": "http://localhost:3000"}) as answer:
            assert answer.status == 200


async def test_what_is_allowed_is_served_and_told_to_the_browser() -> None:
    top = "allow_hosts: [llm.internal]\nallow_origins: ['https://chat.example']"
    async with fleet(Backend("a"), top=top) as front:
        headers = {"host": "llm.internal", "origin": "https://chat.example"}
        async with front.post(headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == "https://chat.example"
            assert "x-weighbridge-ticket" in answer.headers["access-control-expose-headers"]
        asks = {
            **headers,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        async with front.client.options(front.url + CHAT, headers=asks) as answer:
            assert answer.status == 200
            assert "POST" in answer.headers["access-control-allow-methods"]


@asynccontextmanager
async def keyed_from_afar(monkeypatch: pytest.MonkeyPatch, top: str) -> AsyncIterator[Any]:
    """A gateway with keys whose clients are not on this machine, as far as it can tell."""
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    async with fleet(Backend("a"), top=top) as front:
        yield front


async def test_figures_need_a_key_where_keys_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with keyed_from_afar(monkeypatch, KEYS) as front:
        for path in WATCHED:
            async with front.client.get(front.url + path) as answer:
                assert answer.status == 401, path
            for tenant in ("alice", "watcher"):
                headers = {"authorization": f"Bearer {tenant}s-long-key"}
                async with front.client.get(front.url + path, headers=headers) as answer:
                    others = tenant == "alice" and path == "/metrics"
                    assert answer.status == (403 if others else 200), path
        async with front.client.get(front.url + "/health") as answer:
            assert answer.status == 200


async def test_figures_are_open_on_this_machine_and_where_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(Backend("a"), top=KEYS) as front, clients() as client:
        for path in WATCHED:
            async with client.get(front.url + path) as answer:
                assert answer.status == 200, path
    async with keyed_from_afar(monkeypatch, KEYS + "\nopen_pages: true") as front:
        for path in WATCHED:
            async with front.client.get(front.url + path) as answer:
                assert answer.status == 200, path


async def test_with_keys_the_key_decides_and_not_the_site() -> None:
    async with fleet(Backend("a"), top=KEYS) as front:
        headers = {
            "host": "llm.example",
            "origin": "https://chat.example",
            "authorization": "Bearer alices-long-key",
        }
        async with front.post(headers=headers) as answer:
            assert answer.status == 200
