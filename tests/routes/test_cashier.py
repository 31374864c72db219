"""Money off the event loop: whoever is cancelled leaves nothing reserved, and a ledger that fails costs no answer."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from pathlib import Path

import pytest

from tests.fleet.backends import until
from weighbridge.routes.budget import FREE_OF_CHARGE, Budgets, Cashier, Ledger, Reservation, nano


@pytest.fixture
def cashier(tmp_path: Path) -> Cashier:
    return Cashier(Ledger(tmp_path / "ledger.sqlite", Budgets(total=1.0)))


def locked(tmp_path: Path) -> sqlite3.Connection:
    """Another process in the middle of a transaction."""
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


async def test_money_is_reserved_and_settled(cashier: Cashier) -> None:
    reserved = await cashier.reserve("jane", "auto", 0.75)
    assert isinstance(reserved, Reservation)
    assert "exhausted" in str(await cashier.reserve("jane", "auto", 0.5))
    assert "exhausted" in cashier.refusal("jane", "auto", 0.5)
    assert cashier.refusal("jane", "auto", 0.25) == ""
    await cashier.settle(reserved, 0.5)
    await cashier.settle(reserved, 0.1)
    assert (cashier.ledger.spent().settled, cashier.ledger.spent().reserved) == (0.5, 0.0)
    assert await cashier.reserve("jane", "auto", 0.0) is FREE_OF_CHARGE
    await cashier.settle(FREE_OF_CHARGE, 5.0)
    cashier.close()


async def test_whoever_is_cancelled_while_reserving_has_nothing_reserved(
    cashier: Cashier, tmp_path: Path
) -> None:
    other = locked(tmp_path)
    waiting = asyncio.create_task(cashier.reserve("jane", "auto", 0.5))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    other.execute("COMMIT")
    await until(lambda: cashier._thread._work_queue.empty())
    cashier.close()
    assert cashier.ledger.spent().reserved == 0.0
    assert cashier.failures == 0


async def test_a_locked_ledger_refuses_the_cloud_and_the_loop_goes_on(
    cashier: Cashier, tmp_path: Path
) -> None:
    other, beats = locked(tmp_path), 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(heart())
    refused = await cashier.reserve("jane", "auto", 0.5)
    beating.cancel()
    assert "locked" in str(refused)
    assert beats > 5
    assert cashier.refusal("jane", "auto", 0.5) == ""  # looking needs no lock
    other.execute("COMMIT")
    assert isinstance(await cashier.reserve("jane", "auto", 0.5), Reservation)
    cashier.close()


async def test_what_cannot_be_settled_now_is_settled_later(cashier: Cashier, tmp_path: Path) -> None:
    reserved = await cashier.reserve("jane", "auto", 0.5)
    assert isinstance(reserved, Reservation)
    other = locked(tmp_path)
    await cashier.settle(reserved, 0.25)  # the answer it paid for is not lost
    assert cashier.ledger.spent().reserved == 0.5
    other.execute("COMMIT")
    await cashier.reserve("jane", "auto", 0.125)
    assert (cashier.ledger.spent().settled, cashier.ledger.spent().reserved) == (0.25, 0.125)
    cashier.close()


@pytest.mark.parametrize("amount", [math.inf, math.nan, -5.0, 1e300])
async def test_no_absurd_amount_reaches_the_ledger(cashier: Cashier, amount: float) -> None:
    """A settlement that is no amount counts as what was reserved; a budget never grows by it."""
    reserved = await cashier.reserve("jane", "auto", 0.5)
    assert isinstance(reserved, Reservation)
    await cashier.settle(reserved, amount)
    assert (cashier.ledger.spent().settled, cashier.ledger.spent().reserved) == (0.5, 0.0)
    if amount > 0.0:
        assert "USD" in str(await cashier.reserve("jane", "auto", amount))
    with pytest.raises(ValueError, match="cannot be spent"):
        nano(amount)
    cashier.close()
