"""A journaled flow in a process of its own, to be killed at any point: python -m tests.flow.journal.journaled DIR."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from weighbridge.flow import Flow, NotDone, flow, guess, idempotency_key, step

HERE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
PAUSE = 0.004


def note(file: str, **entry: object) -> None:
    """Append a line that survives the death of the process."""
    with (HERE / file).open("a", encoding="utf-8") as out:
        out.write(json.dumps(entry) + "\n")
        out.flush()
        os.fsync(out.fileno())


def entries(directory: Path, file: str) -> list[dict[str, object]]:
    path = directory / file
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@step(effect="read")
async def look(n: int) -> int:
    await asyncio.sleep(PAUSE)
    return (n * 7 + 3) % 101


@step(effect="pure")
async def reckon(n: int) -> int:
    await asyncio.sleep(PAUSE)
    return n + 1


async def settled(text: str) -> str:
    """Whether the effect happened, as an outside system would tell by the key sent along."""
    key = idempotency_key()
    for entry in entries(HERE, "effects.jsonl"):
        if entry["key"] == key:
            return str(entry["text"])
    raise NotDone("no such entry")


@step(settle=settled)
async def post(text: str) -> str:
    await asyncio.sleep(PAUSE)
    note("effects.jsonl", key=idempotency_key(), text=text)
    await asyncio.sleep(PAUSE)
    return text


@flow
async def work(rounds: int) -> list[str]:
    posted: list[str] = []
    n = 1
    for turn in range(rounds):
        seen = look(n)
        aside = reckon(turn)
        n = await guess(seen, by=lambda n: (n * 7 + 3) % 101 if n % 3 else 0)
        posted.append(await post(f"{turn}:{n}:{await aside}"))
        if n % 2:
            posted.append(await post(f"odd {n}"))
    return posted


if __name__ == "__main__":
    journaled: Flow[[int], list[str]] = work.options(journal=HERE / "flow.sqlite", run_id="run-1")
    print(json.dumps(journaled.run(6)))
