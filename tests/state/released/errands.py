"""A flow that every version can run: two quotes, a purchase, and what comes after it."""

from __future__ import annotations

import asyncio

from weighbridge.flow import flow, step

bought: list[str] = []


class Interrupted(BaseException):
    """Stands for the end of the process."""


@step(effect="read")
async def quote(seller: str, seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@step
async def buy(price: float) -> str:
    bought.append(f"for {price}")
    return f"bought for {price}"


@step(effect="read")
async def look(what: str) -> str:
    return f"{what}, delivered"


interrupts = True


@flow
async def errands(interrupted: bool) -> str:
    quotes = [quote("a", 0.2), quote("b", 0.05)]
    for quoted in asyncio.as_completed(quotes):
        price = await quoted
        break
    what = await buy(price)
    await asyncio.gather(*[_value(one) for one in quotes])
    if interrupted and interrupts:
        await asyncio.sleep(0.2)
        raise Interrupted
    return await look(what)


async def _value(call):  # type: ignore[no-untyped-def]
    return await call
