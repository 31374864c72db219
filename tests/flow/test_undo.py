"""What an `undo` step did is taken back when the flow fails; where nobody knows whether it happened, that is said."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from weighbridge.flow import Budget, FlowTimeout, NotDone, StepTimeout, flow, step
from weighbridge.flow.replay.virtual_time import run_virtual


class Hotel:
    """Rooms that are booked at once; the answer takes `seconds`, or does not come."""

    def __init__(self, seconds: float = 9.0, *, settles: bool, error: Exception | None = None) -> None:
        self.rooms: list[str] = []
        self.log: list[str] = []

        async def cancel(room: str) -> None:
            self.rooms.remove(room)
            self.log.append(f"cancel {room}")

        async def look_up(guest: str) -> str:
            for room in self.rooms:
                if room == guest:
                    return room
            raise NotDone("no such room")

        @step(effect="undo", undo=cancel, timeout=1, settle=look_up if settles else None, name="book")
        async def book(guest: str) -> str:
            self.rooms.append(guest)
            self.log.append(f"book {guest}")
            if error is not None:
                raise error
            await asyncio.sleep(seconds)
            return guest

        self.book = book


def test_a_step_that_timed_out_after_its_effect_is_looked_up_and_undone() -> None:
    hotel = Hotel(settles=True)

    @flow
    async def body() -> None:
        await hotel.book("ann")

    with pytest.raises(StepTimeout, match="it may have happened all the same"):
        run_virtual(body())
    assert hotel.log == ["book ann", "cancel ann"]
    assert hotel.rooms == []


def test_what_cannot_be_looked_up_is_named() -> None:
    hotel = Hotel(settles=False)

    @flow
    async def body() -> None:
        await hotel.book("ann")

    with pytest.raises(StepTimeout) as raised:
        run_virtual(body())
    [note] = raised.value.__notes__
    assert "step book may or may not have happened, and was not undone; give it settle=" in note
    assert body.last is not None
    assert note in str(body.last.error)


async def _hang(*_: Any) -> str:
    await asyncio.sleep(1e6)
    return ""


async def _fail(*_: Any) -> str:
    raise OSError("the desk is closed")


async def _room(guest: str) -> str:
    return guest


@pytest.mark.parametrize(
    ("undo", "settle", "why"),
    [
        (_fail, _room, "OSError: the desk is closed"),
        (_room, _fail, "OSError: the desk is closed"),
        (_hang, _room, "it took longer than 1 s"),
        (_room, _hang, "it took longer than 1 s"),
    ],
)
def test_why_a_step_could_not_be_taken_back_is_said(undo: Any, settle: Any, why: str) -> None:
    @step(effect="undo", undo=undo, timeout=1, settle=settle)
    async def book(guest: str) -> str:
        await asyncio.sleep(9)
        return guest

    @flow
    async def body() -> None:
        await book("ann")

    with pytest.raises(StepTimeout) as raised:
        run_virtual(body())
    [note] = raised.value.__notes__
    assert note.startswith(f"undoing {book.name} failed ({why}), so what it did may still be there")


def test_an_error_after_the_effect_is_looked_up_too() -> None:
    hotel = Hotel(settles=True, error=ConnectionError("the line went dead"))

    @flow
    async def body() -> None:
        await hotel.book("ann")

    with pytest.raises(ConnectionError):
        run_virtual(body())
    assert hotel.rooms == []


def test_what_did_not_happen_is_neither_undone_nor_named() -> None:
    hotel = Hotel(settles=False, error=NotDone("no room"))

    @flow
    async def body() -> None:
        await hotel.book("ann")

    with pytest.raises(NotDone) as raised:
        run_virtual(body())
    assert not hasattr(raised.value, "__notes__")
    assert hotel.log == ["book ann"]


@pytest.mark.parametrize("settles", [True, False])
def test_a_step_that_runs_when_the_flow_runs_out_of_time_is_ended_and_undone(settles: bool) -> None:
    hotel = Hotel(settles=settles)

    @flow(budget=Budget(seconds=0.5))
    async def body() -> None:
        await hotel.book("ann")

    with pytest.raises(FlowTimeout) as raised:
        run_virtual(body())
    if settles:
        assert hotel.rooms == []
    else:
        assert "step book may or may not have happened" in raised.value.__notes__[0]


def test_a_step_undone_after_doubt_is_done_again_by_a_resumed_run(tmp_path: Path) -> None:
    seconds: dict[str, Any] = {"book": 9.0}
    rooms: list[str] = []

    async def cancel(room: str) -> None:
        rooms.remove(room)

    async def look_up(guest: str) -> str:
        return guest

    @step(effect="undo", undo=cancel, timeout=1, settle=look_up)
    async def book(guest: str) -> str:
        rooms.append(guest)
        await asyncio.sleep(seconds["book"])
        return guest

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> str:
        return await book("ann")

    with pytest.raises(StepTimeout):
        run_virtual(body())
    assert rooms == []
    seconds["book"] = 0.5
    assert run_virtual(body()) == "ann"
    assert rooms == ["ann"]
