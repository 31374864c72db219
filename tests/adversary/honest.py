"""Honest load: streamed chats at all doors, arriving at times of their own, whatever becomes of those before.

Every answer must come whole. The same seed gives the same prompts at the same times.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from tests.adversary.programs import Task, attend, report
from tests.adversary.site import GATEWAY, HONEST_KEY, MODELS, PRIORITY, ROUTE, SINGLE, Ports

#: Requests a second at each door, where nobody else works.
RATES = {SINGLE: 1.0, GATEWAY: 0.6, ROUTE: 0.4}
TOKENS = 24
TEXT = (
    "weigh the load before it runs, ask who pays for it, write down what was said, and send the answer to "
    "where the question came from; a short one is worth more than a long one when both are right"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds to the first event with text and to the last byte, or what went wrong."""

    door: str
    first: float
    whole: float
    failure: str = ""


def prompt(draw: random.Random, door: str) -> str:
    text = " ".join(draw.choices(TEXT.split(), k=draw.randint(20, 80)))
    return f"{text} {draw.random()}" + (" to ann@example.com" if door == ROUTE else "")


def body(draw: random.Random, door: str) -> dict[str, Any]:
    """A short chat; at the route one that is read for what must not leave, and answered at the edge."""
    told: dict[str, Any] = {"priority": PRIORITY}
    if door == ROUTE:
        told["placement"] = "prefer_edge"
    return {
        "model": MODELS[door],
        "messages": [{"role": "user", "content": prompt(draw, door)}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "weighbridge": told,
    }


async def ask(client: aiohttp.ClientSession, ports: Ports, door: str, chat: dict[str, Any]) -> Sample:
    """Send a chat and read all of its answer."""
    began, first, last = time.monotonic(), 0.0, b""
    url = f"http://127.0.0.1:{ports.of(door)}/v1/chat/completions"
    try:
        async with client.post(url, json=chat, headers={"Authorization": f"Bearer {HONEST_KEY}"}) as answer:
            if answer.status != 200:
                return Sample(door, 0.0, 0.0, f"status {answer.status}: {(await answer.text())[:200]}")
            async for line in answer.content:
                if not first and b'"content":"' in line.replace(b'": "', b'":"'):
                    first = time.monotonic() - began
                last = line.strip() or last
    except (aiohttp.ClientError, TimeoutError) as error:
        return Sample(door, 0.0, 0.0, repr(error))
    if last != b"data: [DONE]" or not first:
        return Sample(door, 0.0, 0.0, f"ended with {last[:200]!r}")
    return Sample(door, first, time.monotonic() - began)


async def visits(task: Task, door: str, client: aiohttp.ClientSession) -> list[Sample]:
    """All requests at one door."""
    draw, asked = random.Random(f"{task.seed} {door}"), []
    at = time.monotonic()
    while (at := at + draw.expovariate(RATES[door] * task.share)) < task.until:
        await asyncio.sleep(at - time.monotonic())
        asked.append(asyncio.create_task(ask(client, task.ports, door, body(draw, door))))
    return await asyncio.gather(*asked)


async def one_by_one(task: Task, client: aiohttp.ClientSession) -> list[Sample]:
    """As many as there is time for at the server, one behind the other."""
    draw, found = random.Random(task.seed), []
    while task.left:
        found.append(await ask(client, task.ports, SINGLE, body(draw, SINGLE)))
    return found


async def main(task: Task) -> dict[str, Any]:
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as client:
        if task.share:
            found = await asyncio.gather(*(visits(task, door, client) for door in RATES))
        else:
            found = [await one_by_one(task, client)]
    samples = [sample for door in found for sample in door]
    done = Counter(sample.failure or "answered" for sample in samples)
    return report(done, samples=[asdict(sample) for sample in samples])


if __name__ == "__main__":
    attend(lambda task: asyncio.run(main(task)))


def read(result: dict[str, Any]) -> list[Sample]:
    """The samples of what the program says."""
    return [Sample(**sample) for sample in result["samples"]]
