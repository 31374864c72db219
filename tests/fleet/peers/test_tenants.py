"""Gateways with one Redis: keys and limits that are changed at one are so at the others, and after restarts."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from tests.fleet.backends import Backend, Front, all_served, clients, fleet, until
from tests.fleet.peers.known import PEERS
from tests.fleet.redis_server import Server, needs_redis
from tests.server.running import free_port, running, wait_until_ready
from weighbridge.cli.app import app
from weighbridge.fleet.peers import board as board_module
from weighbridge.fleet.peers import tenants as tenants_module
from weighbridge.fleet.peers.peers import Peers
from weighbridge.fleet.peers.registers import CLOCKS_APART, REMOVED_KEPT
from weighbridge.fleet.peers.tenant_records import REVOKED, KeyRecord, name_of_key
from weighbridge.fleet.peers.tenants import SharedTenants
from weighbridge.secret import Secret
from weighbridge.server.gateway.changes import read_changes
from weighbridge.server.gateway.tenants import key_id
from weighbridge.wire.keys import digest_of

pytest.importorskip("redis", reason="the extra `redis` is not installed")
pytestmark = [needs_redis, pytest.mark.usefixtures("known_peers")]
quick = pytest.mark.usefixtures("quick")

ADMIN, ANN = "a-long-key-of-the-operator", "a-long-key-of-ann-alone"
OPERATOR = {"authorization": f"Bearer {ADMIN}"}
ANNS = f"tenants: {{ann: {{key: {ANN}, limits: {{requests_per_minute: 50}}}}}}"
GOOD, REVOKED_KEY = (200, None), (401, "revoked_api_key")


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return request.node.name


@dataclass(frozen=True)
class Fleet:
    """What gateways of a test have in common."""

    redis: Server
    prefix: str
    backend: Backend

    def text(self, tenants: str = ANNS, file: Path | None = None, admin: str = ADMIN) -> str:
        changes = "" if file is None else f"changes_file: '{file}'\n"
        entry = f"{{name: first, url: '{self.backend.url}', dialect: weighbridge}}"
        return (
            f"admin_key: {admin}\n{tenants}\n{changes}"
            f"shared: {{redis: '{self.redis.url}', prefix: '{self.prefix}', timeout: 1.0}}\n"
            f"health: {{interval: 0.05, slow_start: 0}}\nmodels: {{m: {{replicas: [{entry}]}}}}\n"
        )

    @asynccontextmanager
    async def gateways(self, *texts: str) -> AsyncIterator[list[Front]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(fleet(config=text)) for text in texts]


@asynccontextmanager
async def common(redis: Server, prefix: str) -> AsyncIterator[Fleet]:
    await redis.ready()
    backend = Backend()
    async with all_served((backend,)):
        yield Fleet(redis, prefix, backend)


async def admin(front: Front, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    url = f"{front.url}/admin/tenants{path}"
    async with front.client.request(method, url, json=body, headers=OPERATOR) as answer:
        return answer.status, await answer.json()


async def asked(front: Front, key: str, **more: Any) -> tuple[int, Any]:
    async with front.post(headers={"authorization": f"Bearer {key}"}, **more) as answer:
        return answer.status, (await answer.json()).get("error", {}).get("code")


async def told(front: Front, tenant: str) -> dict[str, Any]:
    _, page = await admin(front, "GET", "")
    return next((dict(one) for one in page["data"] if one["tenant"] == tenant), {})


async def becomes(look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Wait until a question has this answer."""
    seen = None
    try:
        async with asyncio.timeout(60.0):
            while (seen := await look()) != wanted:  # noqa: ASYNC110  (the other end is a server)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{seen} did not become {wanted}") from None


def peers(front: Front) -> Peers:
    return PEERS[id(front.gateway)]


def shared(front: Front) -> SharedTenants:
    found = peers(front).tenants
    assert found is not None
    return found


async def stop_looking(front: Front) -> None:
    """From now on this gateway hears of nothing by itself."""
    looking = peers(front)._looking
    assert looking is not None
    looking.cancel()
    await asyncio.wait([looking])
    assert looking.cancelled()


async def limits(front: Front, tenant: str) -> tuple[Any, Any]:
    one = await told(front, tenant)
    return one.get("limits"), one.get("limits_from")


async def everything_in(front: Front) -> bytes:
    """All that Redis holds of this fleet."""
    client = peers(front).board._redis
    found = b""
    for key in await client.keys("*"):
        found += key + repr(await client.dump(key)).encode()
        if await client.type(key) == b"hash":
            found += repr(await client.hgetall(key)).encode()
    return bytes(found)


@quick
async def test_each_change_at_one_is_effective_at_the_other(
    redis: Server, prefix: str, tmp_path: Path
) -> None:
    async with common(redis, prefix) as every:
        texts = [every.text(file=tmp_path / f"{name}.jsonl") for name in "ab"]
        async with every.gateways(*texts) as (a, b):
            status, made = await admin(a, "POST", "/bob/keys", {})
            assert (status, made["others_told"]) == (201, True)
            key = made["key"]
            assert await asked(a, key) == GOOD
            await becomes(lambda: asked(b, key), GOOD)
            assert [one["id"] for one in (await told(b, "bob"))["keys"]] == [made["id"]]
            soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
            brief = (await admin(b, "POST", "/bob/keys", {"expires": soon}))[1]["key"]
            await becomes(lambda: asked(a, brief), (401, "expired_api_key"))

            assert (await admin(b, "PUT", "/ann/limits", {"requests_per_minute": 40}))[0] == 200
            await becomes(lambda: limits(a, "ann"), ({"requests_per_minute": 40}, "operator"))
            assert (await admin(a, "DELETE", "/ann/limits"))[0] == 200
            await becomes(lambda: limits(b, "ann"), ({"requests_per_minute": 50}, "configuration"))
            assert (await admin(a, "PUT", "/new/limits", {"usd_per_day": 2.5, "zone": "UTC"}))[0] == 200
            await becomes(lambda: limits(b, "new"), ({"usd_per_day": 2.5, "zone": "UTC"}, "operator"))

            assert (await admin(b, "DELETE", f"/bob/keys/{made['id']}"))[0] == 200
            assert await asked(b, key) == REVOKED_KEY
            await becomes(lambda: asked(a, key), REVOKED_KEY)
            anns = (await told(b, "ann"))["keys"][0]["id"]  # the one in both files
            assert (await admin(b, "DELETE", f"/ann/keys/{anns}"))[0] == 200
            await becomes(lambda: asked(a, ANN), REVOKED_KEY)

            assert (await a.get("/health"))["shared"]["tenant_records"] == 5
            page = await (await b.client.get(b.url + "/metrics", headers=OPERATOR)).text()
            assert "weighbridge_gateway_shared_tenant_records 5.0" in page
            kept = await everything_in(a)
            assert bytes(name_of_key(""), "ascii") in kept
            for secret in (key, brief, ANN):
                assert secret.encode() not in kept

            # Each says of each change who made it, and where; the file of either has them all.
            for front, name in ((a, "a"), (b, "b")):
                done = (await front.get("/admin/changes", OPERATOR))["data"]
                acts = [(one["act"], one["tenant"], one["changed_by"][-len(peers(a).me) :]) for one in done]
                at_a, at_b = peers(a).me, peers(b).me
                assert sorted(acts) == sorted(
                    [
                        ("create_key", "bob", at_a),
                        ("create_key", "bob", at_b),
                        ("set_limits", "ann", at_b),
                        ("reset_limits", "ann", at_a),
                        ("set_limits", "new", at_a),
                        ("revoke_key", "bob", at_b),
                        ("revoke_key", "ann", at_b),
                    ]
                )
                assert all(one["changed_by"].startswith("operator at 127.0.0.1") for one in done)
                file = (tmp_path / f"{name}.jsonl").read_text()
                assert len(file.splitlines()) == 7
                assert key not in file


@quick
async def test_a_gateway_that_starts_later_gets_everything_page_by_page(
    redis: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "PAGE", 3)
    async with common(redis, prefix) as every:
        text = every.text()
        keys = []
        async with every.gateways(text) as (a,):
            for n in range(10):
                keys.append((await admin(a, "POST", f"/t{n}/keys"))[1])
                assert (await admin(a, "PUT", f"/t{n}/limits", {"requests_per_minute": n + 1}))[0] == 200
            await admin(a, "DELETE", f"/t0/keys/{keys[0]['id']}")
            await becomes(lambda: limits(a, "t9"), ({"requests_per_minute": 10}, "operator"))
        async with every.gateways(text) as (b,):  # the first is gone, and neither had a file
            assert await asked(b, keys[0]["key"]) == REVOKED_KEY
            for n in range(1, 10):
                assert await asked(b, keys[n]["key"]) == GOOD
                assert await limits(b, f"t{n}") == ({"requests_per_minute": n + 1}, "operator")


@quick
async def test_a_gateway_that_was_off_hears_what_was_done_meanwhile(
    redis: Server, prefix: str, tmp_path: Path
) -> None:
    async with common(redis, prefix) as every:
        a_text, b_text = (every.text(file=tmp_path / f"{name}.jsonl") for name in "ab")
        async with every.gateways(a_text) as (a,):
            async with every.gateways(b_text) as (b,):
                made = (await admin(a, "POST", "/bob/keys"))[1]
                assert (await admin(a, "PUT", "/bob/limits", {"requests_per_minute": 3}))[0] == 200
                await becomes(lambda: limits(b, "bob"), ({"requests_per_minute": 3}, "operator"))
                assert await asked(b, made["key"]) == GOOD
            await admin(a, "DELETE", f"/bob/keys/{made['id']}")
            await admin(a, "DELETE", "/bob/limits")
            async with every.gateways(b_text) as (b,):  # its own file says that the key is good
                assert await asked(b, made["key"]) == REVOKED_KEY
                assert (await limits(b, "bob"))[1] in (None, "others")
                assert len(read_changes(tmp_path / "b.jsonl")) == 4
        async with every.gateways(b_text) as (b,):
            assert await asked(b, made["key"]) == REVOKED_KEY


@quick
async def test_while_redis_is_away_each_goes_on_and_all_agree_when_it_is_back(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    server.start()
    try:
        async with common(server, prefix) as every:
            a_text, b_text = (every.text(file=tmp_path / f"{name}.jsonl") for name in "ab")
            async with every.gateways(b_text) as (b,):
                async with every.gateways(a_text) as (a,):
                    old = (await admin(a, "POST", "/bob/keys"))[1]
                    await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 30})
                    await becomes(lambda: limits(b, "ann"), ({"requests_per_minute": 30}, "operator"))
                    await becomes(lambda: asked(b, old["key"]), GOOD)
                    server.end()
                    await until(lambda: all(peers(f).away_since is not None for f in (a, b)))
                    assert (await a.get("/health"))["shared"]["redis"] == "away"
                    # Both change what the other cannot hear of.
                    of_a = (await admin(a, "POST", "/cleo/keys"))[1]["key"]
                    of_b = (await admin(b, "POST", "/cleo/keys"))[1]["key"]
                    assert (await asked(a, of_a), await asked(b, of_b)) == (GOOD, GOOD)
                    assert await asked(b, of_a) == (401, "invalid_api_key")
                    _, said = await admin(a, "DELETE", f"/bob/keys/{old['id']}")
                    assert said["others_told"] is False
                    assert await asked(b, old["key"]) == GOOD
                    await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 31})
                    await admin(b, "PUT", "/ann/limits", {"requests_per_minute": 32})
                    await admin(b, "PUT", "/dan/limits", {"requests_per_minute": 33})
                    await admin(a, "PUT", "/eve/limits", {"requests_per_minute": 1})
                    await admin(a, "PUT", "/eve/limits", {"requests_per_minute": 2})
                    await admin(b, "PUT", "/eve/limits", {"requests_per_minute": 3})
                async with every.gateways(a_text) as (a,):  # it starts anew while Redis is away
                    assert peers(a).away_since is not None
                    assert await asked(a, of_a) == GOOD
                    server.start()  # it has lost everything that it knew
                    await server.ready()
                    for front in (a, b):
                        await becomes(lambda f=front: asked(f, of_a), GOOD)
                        await becomes(lambda f=front: asked(f, of_b), GOOD)
                        await becomes(lambda f=front: asked(f, old["key"]), REVOKED_KEY)
                        # Of two that had seen the same the later, else whoever has changed it more often.
                        wanted = {"ann": 32, "dan": 33, "eve": 2}
                        for tenant, most in wanted.items():
                            await becomes(
                                lambda f=front, t=tenant: limits(f, t),
                                ({"requests_per_minute": most}, "operator"),
                            )
                    assert shared(a).roster.all() == shared(b).roster.all()
            said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
            assert any("limits of tenant ann: what" in one and "holds, and not what" in one for one in said)
            async with every.gateways(every.text()) as (c,):
                assert await asked(c, of_a) == GOOD
                assert await asked(c, old["key"]) == REVOKED_KEY
    finally:
        server.end()


@quick
async def test_of_two_changes_of_the_same_limits_the_second_is_told_who_was_quicker(
    redis: Server, prefix: str
) -> None:
    async with common(redis, prefix) as every, every.gateways(every.text(), every.text()) as (a, b):
        for front in (a, b):  # neither looks: each knows only what it did itself
            await stop_looking(front)
        assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 10}))[0] == 200
        status, said = await admin(b, "PUT", "/ann/limits", {"requests_per_minute": 20})
        assert (status, said["error"]["code"]) == (409, "changed_meanwhile")
        assert peers(a).me in said["error"]["message"]
        assert await limits(b, "ann") == ({"requests_per_minute": 10}, "operator")  # and it knows now
        assert (await admin(b, "PUT", "/ann/limits", {"requests_per_minute": 20}))[0] == 200
        assert (await admin(a, "DELETE", "/ann/limits"))[0] == 409
        assert (await admin(a, "DELETE", "/ann/limits"))[0] == 200
        made = (await admin(a, "POST", "/bob/keys"))[1]
        await peers(b).look()
        for front in (a, b):  # whoever revokes what is revoked has what he wants
            status, said = await admin(front, "DELETE", f"/bob/keys/{made['id']}")
            assert status == 200, (said, front is a, peers(front).away_since, shared(front).roster.all())


@quick
async def test_where_a_file_says_others_it_holds_at_its_gateway_and_the_log_says_so(
    redis: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "weighbridge.fleet")
    other = ANNS.replace("requests_per_minute: 50", "requests_per_minute: 60")
    async with common(redis, prefix) as every:
        texts = every.text(), every.text(tenants=other), every.text(tenants="")
        async with every.gateways(*texts) as (a, b, c):
            assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 7}))[0] == 200
            assert (await admin(a, "PUT", "/bob/limits", {"requests_per_minute": 8}))[0] == 200
            await becomes(lambda: limits(b, "bob"), ({"requests_per_minute": 8}, "operator"))
            assert await limits(b, "ann") == ({"requests_per_minute": 60}, "configuration")
            assert "limits of tenant ann had been set by an operator" in caplog.text
            # One that asks nobody for a key is not closed by one, nor when it starts anew.
            made = (await admin(a, "POST", "/bob/keys"))[1]
            await becomes(lambda: asked(b, made["key"]), GOOD)
            await until(lambda: f"key {made['id']} of tenant bob was made by" in caplog.text)
            async with c.post() as answer:
                assert answer.status == 200
            # Whoever resets it where it does hold resets it everywhere.
            assert (await admin(b, "DELETE", "/bob/limits"))[0] == 200
            await becomes(lambda: limits(a, "bob"), ({}, "others"))
        named = f"tenants: {{ann: {{keys: [{{key: {ANN}}}, {{key: {made['key']}, expires: 2001-01-01}}]}}}}"
        async with every.gateways(every.text(tenants=named)) as (d,):
            assert await asked(d, made["key"]) == (401, "expired_api_key")  # as its file says
            assert "and the configuration names it for tenant ann" in caplog.text


@quick
async def test_what_others_wrote_into_redis_is_refused_and_harms_nobody(redis: Server, prefix: str) -> None:
    async with common(redis, prefix) as every, every.gateways(every.text()) as (a,):
        made = (await admin(a, "POST", "/bob/keys"))[1]
        client, start = peers(a).board._redis, f"{prefix}:{{fleet}}:"
        await becomes(lambda: client.hlen(start + "tenants"), 1)
        ((name, sealed),) = (await client.hgetall(start + "tenants")).items()
        digest = "ab" * 32
        forged = sealed.replace(name[4:], digest.encode())
        hostile = {
            f"key:{digest}": forged,
            "limits:ann": b"1 1.000000 " + b"0" * 32 + b' {"type":"limits","name":"limits:ann","version":1}',
            "limits:bob": sealed,
            "\x00\xff": b"\xff" * 40_000,
            "": b"",
        }
        await client.hset(start + "tenants", mapping=hostile)
        number = int(await client.hget(start + "changes", "tenants"))
        await client.zadd(start + "tenants:order", dict.fromkeys(hostile, number + 1))
        await client.zadd(start + "tenants:order", {"nothing-there": number + 1, "far": 1e300})
        await client.hset(start + "changes", "tenants", number + 1)
        await until(lambda: peers(a).refused == len(hostile) + 1)
        assert (await a.get("/health"))["shared"]["refused"] == len(hostile) + 1
        assert await asked(a, made["key"]) == GOOD
        assert (await limits(a, "ann"))[0] == {"requests_per_minute": 50}
        # Nothing of theirs stands against a change, and a record that was deleted is written again.
        assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 9}))[0] == 200
        await client.delete(start + "tenants", start + "tenants:order", start + "changes")
        async with every.gateways(every.text()) as (b,):
            await becomes(lambda: asked(b, made["key"]), GOOD)
            await becomes(lambda: limits(b, "ann"), ({"requests_per_minute": 9}, "operator"))
        async with every.gateways(every.text(admin="another-key-of-an-operator")) as (c,):
            await until(lambda: peers(c).refused >= 2)
            assert await asked(c, made["key"]) == (401, "invalid_api_key")
        await client.delete(start + "tenants:order")
        await client.set(start + "tenants:order", "no order at all")
        assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 11}))[0] == 200
        await until(lambda: peers(a).away_since is not None)
        assert await asked(a, made["key"]) == GOOD
        await client.delete(start + "tenants:order")
        await until(lambda: peers(a).away_since is None)


@quick
async def test_records_are_found_again_where_redis_has_lost_their_count(redis: Server, prefix: str) -> None:
    async with common(redis, prefix) as every:
        async with every.gateways(every.text()) as (a,):
            made = (await admin(a, "POST", "/bob/keys"))[1]
            assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 9}))[0] == 200
            await admin(a, "DELETE", f"/bob/keys/{made['id']}")
            client, start = peers(a).board._redis, f"{prefix}:{{fleet}}:"
            await stop_looking(a)
            await client.delete(start + "changes")
        async with every.gateways(every.text(), every.text()) as (b, c):  # whoever knew them is gone
            for front in (b, c):
                assert await asked(front, made["key"]) == REVOKED_KEY
                assert await limits(front, "ann") == ({"requests_per_minute": 9}, "operator")
            assert (await admin(c, "PUT", "/cleo/limits", {"requests_per_minute": 3}))[0] == 200
            assert (await admin(c, "PUT", "/dan/limits", {"requests_per_minute": 4}))[0] == 200
            await becomes(lambda: limits(b, "dan"), ({"requests_per_minute": 4}, "operator"))
            scores = await client_scores(b, start)
            assert len(set(scores)) == len(scores) == 4


async def client_scores(front: Front, start: str) -> list[float]:
    """The numbers of the last changes of all records."""
    pairs = await peers(front).board._redis.zrange(start + "tenants:order", 0, -1, withscores=True)
    return [score for _, score in pairs]


@quick
async def test_what_could_not_be_written_down_is_so_nowhere(
    redis: Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        common(redis, prefix) as every,
        every.gateways(every.text(file=tmp_path / "a.jsonl"), every.text()) as (a, b),
    ):
        assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 40}))[0] == 200
        await becomes(lambda: limits(b, "ann"), ({"requests_per_minute": 40}, "operator"))

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("weighbridge.server.gateway.changes.os.fsync", full)
            assert (await admin(a, "POST", "/bob/keys"))[0] == 503
            assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 41}))[0] == 503
            name = "limits:ann"
            await until(lambda: shared(b).roster.version(name) == 3)
            assert await limits(a, "ann") == ({"requests_per_minute": 40}, "operator")
            await becomes(lambda: limits(b, "ann"), ({"requests_per_minute": 40}, "operator"))
            assert not (await told(a, "bob")).get("keys")
            assert not (await told(b, "bob")).get("keys")
            # What the other one does holds here, whether this disk takes it or not.
            made = (await admin(b, "POST", "/cleo/keys"))[1]
            await becomes(lambda: asked(a, made["key"]), GOOD)
        assert (await admin(a, "PUT", "/ann/limits", {"requests_per_minute": 42}))[0] == 200
        await becomes(lambda: limits(b, "ann"), ({"requests_per_minute": 42}, "operator"))


@quick
async def test_records_are_bounded_with_room_for_keys_that_are_revoked(
    redis: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (board_module, tenants_module):
        monkeypatch.setattr(module, "MOST_TENANT_RECORDS", 4)
        monkeypatch.setattr(module, "ROOM_FOR_REVOKED", 1)
    async with common(redis, prefix) as every, every.gateways(every.text(), every.text()) as (a, b):
        made = [(await admin(a, "POST", f"/t{n}/keys"))[1] for n in range(3)]
        await becomes(lambda: asked(b, made[2]["key"]), GOOD)
        for front in (a, b):
            status, said = await admin(front, "POST", "/more/keys")
            assert (status, said["error"]["code"]) == (409, "too_many_changes")
            assert "give keys an end" in said["error"]["message"]
            assert (await admin(front, "PUT", "/more/limits", {}))[0] == 409
        peers(b).tenants.roster._records.clear()  # type: ignore[union-attr]
        assert (await admin(b, "PUT", "/more/limits", {}))[0] == 409  # Redis says so too
        (anns,) = (await told(a, "ann"))["keys"]
        assert (await admin(a, "DELETE", f"/ann/keys/{anns['id']}"))[0] == 200
        await becomes(lambda: asked(b, ANN), REVOKED_KEY)
        assert (await admin(a, "DELETE", f"/t0/keys/{made[0]['id']}"))[0] == 200  # it takes no more room
        await becomes(lambda: asked(b, made[0]["key"]), REVOKED_KEY)


@quick
async def test_keys_that_expired_long_ago_leave_redis(
    redis: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants_module, "TIDY_EVERY", 0.0)
    async with common(redis, prefix) as every, every.gateways(every.text(), every.text()) as (a, b):
        now, digest = time.time(), "cd" * 32
        ended = KeyRecord(
            name=name_of_key(digest),
            version=REVOKED,
            at=1.0,
            by="ann",
            tenant="t",
            digest=digest,
            expires=now,
        )
        long_ago = replace(ended, expires=now - REMOVED_KEPT - CLOCKS_APART - 60.0)
        lately = replace(ended, name=name_of_key("ef" * 32), digest="ef" * 32)
        for record in (long_ago, lately):
            shared(a).roster.take(record)
            await peers(a).board.put(record, None)
        client, start = peers(a).board._redis, f"{prefix}:{{fleet}}:"
        await becomes(lambda: client.hkeys(start + "tenants"), [lately.name.encode()])
        assert await client.zrange(start + "tenants:order", 0, -1) == [lately.name.encode()]
        await until(lambda: shared(a).roster.all() == shared(b).roster.all() == {lately.name: lately})


@quick
async def test_the_difference_from_the_file_is_the_same_at_both(
    redis: Server, prefix: str, tmp_path: Path
) -> None:
    async with common(redis, prefix) as every, every.gateways(every.text(), every.text()) as (a, b):
        file = tmp_path / "weighbridge.yaml"
        file.write_text(every.text())
        await admin(a, "POST", "/bob/keys")
        await admin(a, "PUT", "/ann/limits", {"tokens_per_minute": 100})
        (anns,) = (await told(a, "ann"))["keys"]
        await admin(a, "DELETE", f"/ann/keys/{anns['id']}")
        await becomes(lambda: asked(b, ANN), REVOKED_KEY)

        def diff(front: Front) -> Any:
            words = ["config", "diff", str(file), "--url", front.url, "--admin-key", ADMIN, "--json"]
            return json.loads(CliRunner().invoke(app, words).output)["differences"]

        found = [await asyncio.to_thread(diff, front) for front in (a, b)]
        assert found[0] == found[1]
        assert len(found[0]) == 3  # a key that was made, one that was revoked, limits
        audit = await asyncio.to_thread(
            CliRunner().invoke, app, ["audit", "--url", b.url, "--admin-key", ADMIN]
        )
        assert f"operator at 127.0.0.1, gateway {peers(a).me}  revoke key of tenant ann" in audit.output


async def test_a_revoked_key_is_refused_elsewhere_within_seconds_and_its_open_stream_goes_on(
    redis: Server, prefix: str
) -> None:
    """At the pace at which gateways look. What is open goes on, as it does at the gateway that revoked it."""
    async with common(redis, prefix) as every, every.gateways(every.text(), every.text()) as (a, b):
        made = (await admin(a, "POST", "/bob/keys"))[1]
        key = made["key"]
        await becomes(lambda: asked(b, key), GOOD)
        every.backend.gate, every.backend.hold_after = asyncio.Event(), 1
        headers = {"authorization": f"Bearer {key}"}
        async with b.post(headers=headers, stream=True) as stream:
            assert stream.status == 200
            await stream.content.readline()
            began = time.monotonic()
            await admin(a, "DELETE", f"/bob/keys/{made['id']}")
            await becomes(lambda: asked(b, key, passes=True), REVOKED_KEY)
            assert time.monotonic() - began < 10.0  # about one, on a machine that has nothing else to do
            every.backend.let_go()
            rest = await stream.read()
        assert rest.rstrip().endswith(b"data: [DONE]")
        assert key_id(bytes.fromhex(next(iter(shared(b).roster.all().values())).digest)) == made["id"]  # type: ignore[union-attr]


async def test_what_was_answered_is_known_to_all_though_its_gateway_is_killed_at_once(
    redis: Server, prefix: str, tmp_path: Path
) -> None:
    """Processes of their own; none writes a change log. What an operator is told is in Redis by then."""
    async with common(redis, prefix) as every, clients() as session:
        ports = free_port(), free_port()
        files = []
        for port in ports:
            files.append(tmp_path / f"gateway-{port}.yaml")
            files[-1].write_text(f"listen: 127.0.0.1:{port}\n{every.text()}")
        first, second = (f"http://127.0.0.1:{port}" for port in ports)

        def started(stack: ExitStack, file: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)]
            return stack.enter_context(running(command, 30))

        async def change(url: str, method: str, path: str, body: Any = None) -> Any:
            whole = f"{url}/admin/tenants{path}"
            async with session.request(method, whole, json=body, headers=OPERATOR) as answer:
                assert answer.status < 300, await answer.text()
                return await answer.json()

        async def use(url: str, key: str) -> tuple[int, Any]:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
            headers = {"authorization": f"Bearer {key}"}
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                return answer.status, (await answer.json()).get("error", {}).get("code")

        with ExitStack() as stack:
            one, other = (started(stack, file) for file in files)
            await asyncio.to_thread(wait_until_ready, first, one)
            await asyncio.to_thread(wait_until_ready, second, other)
            good, leaked = [(await change(first, "POST", "/bob/keys"))["key"] for _ in range(2)]
            await becomes(lambda: use(second, leaked), GOOD)
            name = key_id(digest_of(Secret(leaked)))
            await change(first, "DELETE", f"/bob/keys/{name}")
            one.kill()
            one.wait(30)
            await becomes(lambda: use(second, leaked), REVOKED_KEY)
            assert await use(second, good) == GOOD
            other.kill()  # now nobody is left who knew it
            other.wait(30)
            again = started(stack, files[0])
            await asyncio.to_thread(wait_until_ready, first, again)
            assert await use(first, leaked) == REVOKED_KEY
            assert await use(first, good) == GOOD
