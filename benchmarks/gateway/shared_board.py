"""What gateways that share a board in Redis cost it: processor time and bytes of a look, an entry, a reservation.

    python benchmarks/gateway/shared_board.py [--gateways 1,2,5,10,20] [--members 0,100,1600] [--looks 200] [--json F]

Each gateway is the product's own `Board` and `SharedLimits`, all of them in this process, against a redis-server of its
own (WEIGHBRIDGE_REDIS_SERVER, or the one on the PATH). What Redis spends is its own account: microseconds of
`INFO commandstats` and of `INFO cpu`, bytes of `INFO stats`. These count work and not waiting, so that they hold on a
busy machine too; latency is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from weighbridge.fleet.limits.periods import calendar
from weighbridge.fleet.limits.shared import SharedLimits
from weighbridge.fleet.limits.tenant import Limiter, TenantLimits
from weighbridge.fleet.peers.board import LARGEST_NEWS, PAGE, Board
from weighbridge.fleet.peers.records import MemberRecord, Rest
from weighbridge.fleet.peers.tenant_records import KeyRecord, name_of_key
from weighbridge.secret import Secret

KEY = b"k" * 32


class Server:
    """A Redis in memory, for this run."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        program = os.environ.get("WEIGHBRIDGE_REDIS_SERVER") or shutil.which("redis-server")
        if program is None:
            raise SystemExit("no redis-server; name one in WEIGHBRIDGE_REDIS_SERVER")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def end(self) -> None:
        self.process.kill()
        self.process.wait(60)


async def spent(client: Redis, work: Callable[[], Awaitable[None]], times: int) -> dict[str, float]:
    """What Redis spent on `work`, for each of `times`."""
    before, own = await client.info("cpu"), time.process_time()
    await client.config_resetstat()
    await work()
    own = time.process_time() - own
    scripts = (await client.info("commandstats")).get("cmdstat_evalsha", {})
    after, now = await client.info("cpu"), await client.info("stats")
    total = sum(after[f"used_cpu_{kind}"] - before[f"used_cpu_{kind}"] for kind in ("user", "sys"))
    return {
        "commands": scripts.get("calls", 0) / times,
        "script_us": scripts.get("usec", 0) / times,
        "redis_cpu_us": 1e6 * total / times,
        "bytes_in": now["total_net_input_bytes"] / times,
        "bytes_out": now["total_net_output_bytes"] / times,
        "gateway_cpu_us": 1e6 * own / times,
    }


def record(number: int) -> MemberRecord:
    entry = {"url": f"http://10.0.{number >> 8}.{number & 255}:8000", "dialect": "vllm", "name": f"r{number}"}
    return MemberRecord(
        name=f"r{number}", model="m", rest=Rest.HERE, version=1, at=1.0, by="ann", entry=entry
    )


async def begun(
    server: Server, gateways: int, records: Iterable[MemberRecord | KeyRecord]
) -> tuple[Any, list[Board]]:
    """An empty Redis with these records on the board, and the boards of so many gateways."""
    client = Redis.from_url(server.url)
    await client.flushall()
    boards = [Board(Secret(server.url), "bench", f"g{n}", KEY, 30.0, "shared") for n in range(gateways)]
    for one in records:
        await boards[0].put(one, None)
    return client, boards


async def ended(client: Any, boards: Sequence[Board]) -> None:
    for board in boards:
        await board.close()
    await client.aclose()


async def looks(server: Server, gateways: int, members: int, count: int) -> list[dict[str, Any]]:
    """A look where nothing has changed, where all members are read, and with news of the largest size."""
    client, boards = await begun(server, gateways, map(record, range(members)))
    counts = [(await board.look("")).count for board in boards]
    rows = []

    async def idle() -> None:
        for _ in range(count):
            for board, known in zip(boards, counts, strict=True):
                await board.look(known)

    async def whole() -> None:
        for board in boards:
            await board.look("")

    async def news() -> None:
        last = ["0-0"] * len(boards)
        for at in range(8):
            for n, (board, known) in enumerate(zip(boards, counts, strict=True)):
                seen = await board.look(known, last[n], bytes([at, n]) * (LARGEST_NEWS // 2))
                last[n] = seen.news[-1].id if seen.news else last[n]

    for name, work, times in (
        ("look", idle, count * gateways),
        ("read all", whole, gateways),
        ("look with 64 KiB of news", news, 8 * gateways),
    ):
        rows.append(
            {
                "what": name,
                "gateways": gateways,
                "members": members,
                **await spent(client, work, max(times, 1)),
            }
        )
    await ended(client, boards)
    return rows


def tenant_record(number: int) -> KeyRecord:
    digest = sha256(b"%d" % number).hexdigest()
    by = "operator at 10.0.0.9, gateway gateway-1-0123abcd"
    return KeyRecord(
        name=name_of_key(digest),
        version=1,
        at=1e9,
        by=by,
        tenant=f"tenant-{number}",
        digest=digest,
        expires=2e9,
    )


async def tenants(server: Server, gateways: int, known: int, count: int) -> list[dict[str, Any]]:
    """Looks where so many keys are known: nothing is new, one was changed, and as many are read as one look brings."""
    client, boards = await begun(server, gateways, map(tenant_record, range(known)))
    seen = await boards[0].look("")
    while seen.tenants.more:
        seen = await boards[0].look(seen.count, tenants_known=seen.tenants.place)
    members, (seed, upto) = seen.count, seen.tenants.place
    for board in boards:
        await board.look(members, tenants_known=(seed, upto))
    rows = []
    for name, behind in (
        ("look, tenants known", 0),
        ("look, one key changed", 1),
        ("look, a page of keys", PAGE),
    ):

        async def work(behind: int = behind) -> None:
            for _ in range(count):
                for board in boards:
                    got = await board.look(members, tenants_known=(seed, max(upto - behind, 0)))
                    assert len(got.tenants.records) == behind

        rows.append(
            {
                "what": name,
                "gateways": gateways,
                "keys": known,
                **await spent(client, work, count * gateways),
            }
        )
    await ended(client, boards)
    return rows


async def reservations(server: Server, open_requests: int, count: int) -> dict[str, Any]:
    """A request of a tenant with limits: one script reserves, one charges before its end, one settles behind it;
    `open_requests` of it are under way."""
    client = Redis.from_url(server.url)
    await client.flushall()
    limits = TenantLimits(tokens_per_minute=10**9, requests_per_minute=10**9, usd_per_day=1e9)
    local = Limiter(default=limits, calendar=calendar(time.monotonic))
    shared = SharedLimits(Secret(server.url), local, timeout=30.0)
    shared.gateway = "g0"
    for number in range(open_requests):
        await shared.reserve("t", f"open{number}", 100, 0.001)

    async def work() -> None:
        for number in range(count):
            await shared.reserve("t", f"q{number}", 100, 0.001)
            await shared.charge("t", f"q{number}", 90, 0.001)
            shared.settle("t", f"q{number}", 90, 0.001)
            if number % 64 == 63:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)

    row = {
        "what": "a request with limits",
        "open": open_requests,
        **await spent(client, work, count),
    }
    await shared.close()
    await client.aclose()
    return row


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    server = Server()
    try:
        client = Redis.from_url(server.url)
        while True:
            try:
                await client.ping()
                break
            except Exception:
                await asyncio.sleep(0.05)
        await client.aclose()
        rows = []
        for members in options.members:
            for gateways in options.gateways:
                rows += await looks(server, gateways, members, options.looks)
        for gateways in options.gateways:
            rows += await tenants(server, gateways, options.tenants, options.looks)
        for open_requests in (1, 100, 1000):
            rows.append(await reservations(server, open_requests, 500))
        return rows
    finally:
        server.end()


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gateways", type=numbers, default=[1, 2, 5, 10, 20])
    parser.add_argument("--members", type=numbers, default=[0, 100, 1600])
    parser.add_argument(
        "--tenants", type=int, default=9000, help="keys that gateways have told each other of"
    )
    parser.add_argument("--looks", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(
            "  ".join(
                f"{name} {one if isinstance(one, str | int) else round(one, 1)}" for name, one in row.items()
            )
        )


if __name__ == "__main__":
    main()
