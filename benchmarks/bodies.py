"""How long a chat takes beside long bodies of another tenant, and what bodies that never end hold of memory.

python benchmarks/bodies.py [--heavy 12] [--megabytes 8] [--stalled 60]

Starts a simulated replica with keys. As many connections as told send a body each but for its last byte. Then one
tenant sends many bodies of megabytes at once, and another one chats of 20 KB one after another meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import msgspec

KEYS = {name: f"a-long-key-of-{name}" for name in ("heavy", "light")}
CHAT = "/v1/chat/completions"


def _body(size: int) -> bytes:
    words = "word " * (size // 5)
    return msgspec.json.encode({"messages": [{"role": "user", "content": words}], "max_tokens": 1})


def _many(size: int) -> bytes:
    """As many small messages as fit."""
    message = {"role": "user", "content": "a"}
    return msgspec.json.encode({"messages": [message] * (size // 31), "max_tokens": 1})


def _auth(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}", "Content-Type": "application/json"}


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def _timed(client: aiohttp.ClientSession, url: str, name: str, body: bytes) -> tuple[int, float]:
    began = time.perf_counter()
    async with client.post(url + CHAT, data=body, headers=_auth(name)) as answer:
        await answer.read()
    return answer.status, time.perf_counter() - began


async def _beside(client: aiohttp.ClientSession, url: str, heavy: int, long: bytes) -> None:
    short, times = _body(20_000), []
    alone = [(await _timed(client, url, "light", short))[1] for _ in range(10)]
    others = [asyncio.create_task(_timed(client, url, "heavy", long)) for _ in range(heavy)]
    while not all(task.done() for task in others):
        await asyncio.sleep(0.02)
        times.append((await _timed(client, url, "light", short))[1])
    statuses = sorted(status for status, _ in await asyncio.gather(*others))
    took = max(seconds for _, seconds in await asyncio.gather(*others))
    print(f"chats of 20 KB alone: median {statistics.median(alone):.3f} s, longest {max(alone):.3f} s")
    print(
        f"beside {heavy} bodies of {len(long) / 1e6:.1f} MB, answered {statuses[0]} to {statuses[-1]} in {took:.2f} s:"
    )
    print(f"  {len(times)} chats: median {statistics.median(times):.3f} s, longest {max(times):.3f} s")


async def _stalled(port: int, pid: int, count: int, size: int) -> None:
    before, lines = _memory_mb(pid), []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEYS['heavy']}\r\n"
        writer.write(f"{head}Content-Length: {size}\r\n\r\n".encode() + b" " * (size - 1))
        lines.append((reader, writer))
    await asyncio.sleep(3)
    held = _memory_mb(pid)
    print(
        f"{count} bodies of {size >> 20} MiB without the last byte: {before:.0f} MiB before, {held:.0f} with them"
    )
    for _, writer in lines:
        writer.close()


async def _measured(port: int, pid: int, told: argparse.Namespace) -> None:
    url, size = f"http://127.0.0.1:{port}", told.megabytes << 20
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        for _ in range(200):
            try:
                async with client.get(url + "/health") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        await _stalled(port, pid, told.stalled, size)
        await _beside(client, url, told.heavy, _body(size - 1000))
        await _beside(client, url, told.heavy, _many(size - 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--heavy", type=int, default=12, help="long bodies at one time")
    parser.add_argument("--megabytes", type=int, default=8, help="of each")
    parser.add_argument("--stalled", type=int, default=60, help="bodies that never end")
    told = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    keys = [word for name, key in KEYS.items() for word in ("--api-key", f"{name}={key}")]
    command = [sys.executable, "-m", "weighbridge", "replica", "--simulated", "--port", str(port), *keys]
    replica = subprocess.Popen(command)
    try:
        asyncio.run(_measured(port, replica.pid, told))
    finally:
        replica.terminate()
        replica.wait()


if __name__ == "__main__":
    main()
