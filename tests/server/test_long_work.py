"""Long bodies and long looks at the ledger keep out neither others nor the names of hosts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.fleet.backends import Backend, fleet, until
from weighbridge.routes.ledger.keeper import UsageKeeper
from weighbridge.server import usage
from weighbridge.wire import body as bodies

KEYS = "tenants: {heavy: {key: heavys-long-key}, light: {key: lights-long-key}}\nmax_body: 4MiB\n"
CHAT = "/v1/chat/completions"


def key(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {tenant}s-long-key"}


async def stalled(port: int, tenant: str, size: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send half of a body, and no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {tenant}s-long-key\r\n"
    writer.write(f"{head}Content-Length: {2 * size}\r\n\r\n".encode() + b" " * size)
    return reader, writer


async def test_bodies_that_never_end_keep_out_their_sender_alone_and_have_a_bound_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "LARGEST_ONES", 0)
    monkeypatch.setattr(bodies._room, "most", 6 << 20)
    async with fleet(Backend("a"), top=KEYS) as front:
        port = int(front.url.rpartition(":")[2])
        lines = [await stalled(port, "heavy", 1 << 20) for _ in range(20)]
        refused = [await reader.readline() for reader, _ in lines[4:6]]
        assert refused[-1].startswith(b"HTTP/1.1 429")
        head = await lines[5][0].readuntil(b"\r\n\r\n")
        assert b"retry-after: 1" in head.lower()
        assert bodies._room.total <= 3 << 20
        long: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "word " * 200_000}]}
        for tenant, status in (("light", 200), ("heavy", 429)):
            async with front.client.post(front.url + CHAT, json=long, headers=key(tenant)) as answer:
                assert answer.status == status, await answer.text()
                if status == 429:
                    assert (await answer.json())["error"]["code"] == "too_many_bodies"
        async with front.post(headers=key("heavy")) as answer:  # what is short needs no room
            assert answer.status == 200
        for _, writer in lines:
            writer.close()
        await until(lambda: not bodies._room.total)
        async with front.client.post(front.url + CHAT, json=long, headers=key("heavy")) as answer:
            assert answer.status == 200
    assert not bodies._room.held


async def test_long_looks_at_the_ledger_leave_the_names_of_hosts_alone_and_have_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, looking = threading.Event(), []
    rows = UsageKeeper.rows

    def slow(self: UsageKeeper, query: Any) -> Any:
        looking.append(query)
        gate.wait(30)
        return rows(self, query)

    monkeypatch.setattr(UsageKeeper, "rows", slow)
    async with fleet(Backend("a"), top=KEYS) as front:

        async def look() -> tuple[int, Any]:
            async with front.client.get(front.url + "/v1/usage", headers=key("light")) as answer:
                if answer.status == 503:
                    assert answer.headers["retry-after"] == "1"
                return answer.status, await answer.json()

        asked = [asyncio.create_task(look()) for _ in range(usage.MOST_ASKED + 9)]
        await until(lambda: sum(task.done() for task in asked) == 9)
        await asyncio.wait_for(asyncio.get_running_loop().getaddrinfo("localhost", 80), 20)
        assert len(looking) == 1
        gate.set()
        answers = await asyncio.gather(*asked)
        assert sorted(status for status, _ in answers) == [200] * usage.MOST_ASKED + [503] * 9
        assert {page["error"]["code"] for status, page in answers if status == 503} == {"ledger_busy"}
