"""A tenant that asks for as much as it can get: long prompts, long answers, many at a time, all of them well-formed.

Beside them what is dear to read: texts full of addresses to redact, grammars, batches of texts to embed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import aiohttp

from tests.adversary.programs import Task, attend, report
from tests.adversary.site import GATEWAY, HEAVY_KEY, ROUTE, SINGLE

#: Requests under way at a time.
AT_ONCE = 12
#: In every text that must not leave; the liars look for it.
SECRET = "planted.secret"
TEXT = "heavier than all that was ever put on a scale and asked for its weight again"


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(TEXT.split(), k=count)) + f" {draw.random()}"


def chat(model: str, text: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return "/v1/chat/completions", body


def long_story(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    door = draw.choice((SINGLE, GATEWAY))
    stream = draw.random() < 0.5
    return door, *chat("tiny", words(draw, 900), max_tokens=200, stream=stream, ignore_eos=True)


def many_choices(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    return SINGLE, *chat("tiny", words(draw, 100), max_tokens=60, n=8, temperature=1)


def batch(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    texts = [words(draw, 100) for _ in range(16)]
    return draw.choice((SINGLE, GATEWAY)), "/v1/embeddings", {"model": "tiny", "input": texts}


def grammar(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    names = [f"field_{draw.randrange(1 << 30)}" for _ in range(30)]
    properties = {name: {"type": "string", "pattern": "^[a-z]{1,40}(-[0-9]{2,9})*$"} for name in names}
    schema = {"type": "object", "properties": properties, "required": names}
    form = {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema}}
    return SINGLE, *chat("tiny", words(draw, 50), max_tokens=40, response_format=form)


def to_redact(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    """A text that a lying cloud answers, with things in it that it must not see."""
    mails = " ".join(f"{SECRET}{draw.randrange(1 << 30)}@example.com" for _ in range(draw.choice((1, 300))))
    text = f"write to {mails} {words(draw, 60)}"
    placed = {"placement": "only_cloud"}
    return ROUTE, *chat("auto", text, max_tokens=32, stream=draw.random() < 0.5, weighbridge=placed)


def lied_to(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    return GATEWAY, *chat("far", words(draw, 60), max_tokens=32, stream=draw.random() < 0.5)


def too_long(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    """Two megabytes to be counted, and refused."""
    return draw.choice((SINGLE, GATEWAY)), *chat("tiny", words(draw, 400_000), max_tokens=1)


KINDS = (
    (long_story, 6),
    (many_choices, 1),
    (batch, 1),
    (grammar, 1),
    (to_redact, 6),
    (lied_to, 6),
    (too_long, 0.2),
)


async def worker(task: Task, number: int, client: aiohttp.ClientSession, done: Counter[str]) -> None:
    draw = random.Random(task.seed * 1000 + number)
    while (left := task.left) > 0.5:
        [kind] = draw.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
        door, path, body = kind(draw)
        url = f"http://127.0.0.1:{task.ports.of(door)}{path}"
        try:
            async with asyncio.timeout(left), client.post(url, json=body) as answer:
                await answer.read()
                done[f"{kind.__name__} {answer.status}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            done[f"{kind.__name__} {type(error).__name__}"] += 1
        await asyncio.sleep(0.05)


async def main(task: Task) -> dict[str, Any]:
    done: Counter[str] = Counter()
    headers = {"Authorization": f"Bearer {HEAVY_KEY}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as client:
        await asyncio.gather(*(worker(task, number, client, done) for number in range(AT_ONCE)))
    return report(done)


if __name__ == "__main__":
    attend(lambda task: asyncio.run(main(task)))
