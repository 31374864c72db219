"""An agent whose steps overlap, and that starts the likely next step before it is sure.

python examples/flow.py
"""

from __future__ import annotations

import asyncio

from weighbridge.flow import flow, guess, step

SENT: list[str] = []


@step(effect="pure")
async def classify(question: str) -> str:
    await asyncio.sleep(0.1)  # a small model
    return "refund"


@step(effect="read")
async def policy(intent: str) -> str:
    await asyncio.sleep(0.1)  # a look-up
    return f"rules for {intent}"


@step  # a write, which is the default: never early, never twice
async def send(text: str) -> None:
    SENT.append(text)


@flow
async def support(question: str) -> None:
    intent = await guess(classify(question), by=lambda question: "refund")  # goes on with this answer
    await send(f"{question} -> {await policy(intent)}")


if __name__ == "__main__":
    support.run("Where is my money?")
    print(SENT, support.timeline(), support.explain(), sep="\n")
