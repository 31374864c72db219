"""Replicas are killed, stalled and restarted under load: nobody waits for ever, nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.fleet.backends import Front, events, fleet
from tests.server.running import free_port, wait_until_ready

CONFIG = """
health: {{interval: 0.2, slow_start: 1}}
timeouts: {{connect: 2, first_byte: 6, idle: 3, answer: 20}}
retry: {{budget: 0.5}}
hedge: {{enabled: true, extra_work: 0.05}}
models:
  m:
    policy: {policy}
    resume: {resume}
    replicas:
{entries}
"""


@dataclass
class Replica:
    """A simulated replica in a process of its own, which the test may hurt."""

    port: int
    process: subprocess.Popen[bytes] | None = None
    log: list[str] = field(default_factory=list)

    def start(self) -> None:
        command = [sys.executable, "-m", "weighbridge", "replica", "--simulated", "--port", str(self.port)]
        command += ["--time-scale", "0.5", "--max-sequences", "16", "--output-length", "lognormal:20:0.8"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    async def ready(self) -> None:
        assert self.process is not None
        await asyncio.to_thread(wait_until_ready, f"http://127.0.0.1:{self.port}", self.process)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait(5)


async def faults(replica: Replica, **values: float) -> None:
    url = f"http://127.0.0.1:{replica.port}/faults"
    async with aiohttp.ClientSession() as client, client.post(url, json=values) as answer:
        assert answer.status == 200, await answer.text()


async def load(front: Front, until: float, rng: random.Random, ends: Counter[str], streams: int) -> None:
    """Closed loop: each worker sends one request after the other and notes how it ended."""

    async def worker() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
            while time.monotonic() < until:
                ends[await one(client)] += 1

    async def one(client: aiohttp.ClientSession) -> str:
        streaming = rng.random() < 0.7
        leave = rng.random() < 0.05
        words = "weigh " * rng.choice([3, 30, 300])
        body = {"model": "m", "prompt": f"{rng.random()} {words}", "max_tokens": 60, "stream": streaming}
        async with client.post(front.url + "/v1/completions", json=body) as answer:
            if leave:
                return "left"
            data = await answer.read()
        if answer.status != 200:
            return f"status {answer.status}"
        if not streaming:
            return "whole"
        found = events(data)
        if found[-1] == "[DONE]":
            return "streamed"
        assert "error" in found[-1], found[-1]
        return "error event"

    await asyncio.gather(*(worker() for _ in range(streams)))


async def havoc(replicas: list[Replica], until: float, rng: random.Random) -> Counter[str]:
    """Until shortly before the end, something happens to somebody; never to all at once."""
    done: Counter[str] = Counter()
    while time.monotonic() < until - 4.0:
        victim = rng.choice(replicas)
        what = rng.choice(["kill", "stall", "stop", "errors", "stalls", "disconnects", "lie", "endless"])
        done[what] += 1
        if what == "kill":
            victim.end()
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            victim.start()
            await victim.ready()
        elif what == "stop":
            victim.signal(signal.SIGSTOP)
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            victim.signal(signal.SIGCONT)
        elif what == "stall":
            await faults(victim, freeze_seconds=rng.uniform(0.5, 2.0))
        else:
            values = {
                "errors": {"error_rate": 0.5},
                "stalls": {"stall_rate": 0.2, "stall_seconds": 1.0},
                "disconnects": {"disconnect_rate": 0.3},
                "lie": {"load_factor": 0.0},
                "endless": {"endless_rate": 0.1},
            }[what]
            await faults(victim, **values)
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            await faults(victim, **dict.fromkeys(set(values) - {"stall_seconds"}, 0.0) | _lying(what))
        await asyncio.sleep(rng.uniform(0.1, 0.5))
    return done


def _lying(what: str) -> dict[str, float]:
    return {"load_factor": 1.0} if what == "lie" else {}


async def chaos(seconds: float, seed: int, policy: str, resume: str) -> tuple[Counter[str], Counter[str]]:
    rng = random.Random(seed)
    replicas = [Replica(free_port()) for _ in range(3)]
    try:
        for replica in replicas:
            replica.start()
        await asyncio.gather(*(replica.ready() for replica in replicas))
        entries = "\n".join(
            f"      - {{url: 'http://127.0.0.1:{one.port}', name: r{n}, dialect: weighbridge, model: simulated}}"
            for n, one in enumerate(replicas)
        )
        config = CONFIG.format(entries=entries, policy=policy, resume=resume)
        async with fleet(config=config) as front:  # checks that every counter is at zero when it ends
            until, ends = time.monotonic() + seconds, Counter()
            async with asyncio.timeout(seconds + 120):
                _, done = await asyncio.gather(
                    load(front, until, rng, ends, 12), havoc(replicas, until, random.Random(seed))
                )
            for replica in replicas:
                await faults(replica, error_rate=0, stall_rate=0, disconnect_rate=0, endless_rate=0)
            await front.idle()
            await healthy_again(front)
    finally:
        for replica in replicas:
            replica.end()
    return ends, done


async def healthy_again(front: Front) -> None:
    """After the storm all replicas serve again. A breaker closes with the first request that goes well."""
    deadline = time.monotonic() + 120
    standing: dict[str, str] = {}
    while time.monotonic() < deadline and set(standing.values()) != {"up"}:
        jobs = (front.stream("/v1/completions", prompt=f"{n} after", max_tokens=20) for n in range(6))
        await asyncio.gather(*jobs)
        replicas = (await front.get("/v1/load"))["models"]["m"]["replicas"]
        standing = {one["name"]: one["standing"] for one in replicas}
    assert set(standing.values()) == {"up"}, standing
    before = after = {one["name"]: one["finished"] for one in replicas}
    deadline = time.monotonic() + 20  # who was slow in the storm is tried again before long
    while time.monotonic() < deadline and not all(after[name] > before[name] for name in after):
        await asyncio.gather(
            *(front.stream("/v1/completions", prompt=f"{n} even", max_tokens=20) for n in range(30))
        )
        await front.idle()
        told = (await front.get("/v1/load"))["models"]["m"]["replicas"]
        after = {one["name"]: one["finished"] for one in told}
    assert all(after[name] > before[name] for name in after), (before, after)


def judge(ends: Counter[str], done: Counter[str]) -> None:
    """Every request ended in a way its client could see. Errors are rare: a fifth at the very most."""
    total = sum(ends.values())
    good = ends["whole"] + ends["streamed"] + ends["left"]
    assert done, "nothing happened"
    assert good >= 0.8 * total, (ends, done)
    assert set(ends) <= {
        "whole",
        "streamed",
        "left",
        "error event",
        "status 502",
        "status 504",
        "status 503",
        "status 500",
        "status 429",
    }


async def test_a_short_storm() -> None:
    ends, done = await chaos(8.0, seed=7, policy="weigh", resume="true")
    judge(ends, done)


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("policy", "resume"), [("weigh", "true")])
async def test_five_minutes_of_storm(policy: str, resume: str) -> None:
    ends, done = await chaos(300.0, seed=11, policy=policy, resume=resume)
    print(f"\n{policy}: {sum(ends.values())} requests ended as {dict(ends)} through {dict(done)}")
    judge(ends, done)
