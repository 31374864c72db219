"""Runs batches: line by line, on what nobody else needs, until all have an answer or their time is over.

What has been answered is written down before anything else is done with it; whatever ends this process, another one
goes on with the lines that have no answer. Several processes may share a file: one of them runs its batches.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from weighbridge.engine.request import SPARE_CLASS
from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.limits.spare import SpareRoom
from weighbridge.server.batch.answering import (
    DOUBTFUL,
    FOR_NOW,
    MAX_TRIES,
    LineAnswer,
    LineAnswers,
    LineService,
)
from weighbridge.server.batch.late import LATE_CLASS, LateLines
from weighbridge.server.batch.lines import BatchLine, ReadLines, answered, read_lines
from weighbridge.server.batch.records import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FAILED,
    FINALIZING,
    VALIDATING,
    BatchRecord,
    Problem,
)
from weighbridge.server.batch.store import BatchStore, LineOutcome, NoRoom
from weighbridge.state.believed_time import believed_time
from weighbridge.state.database import StateError

log = logging.getLogger("weighbridge.server")

#: Seconds between two looks: while there are lines to run, and at what another process may have put into the file.
TICK, LOOK = 0.05, 1.0
#: Lines that are read at a time.
PAGE = 64
#: Seconds that lines may stand still beside others' requests before they give their places back.
PATIENCE = 30.0
#: Seconds after which a line that was refused is tried again: at first, and at most.
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
_DAY = 86_400.0


@dataclass(slots=True)
class _Waiting:
    line: BatchLine
    text: bytes
    tries: int = 0
    due: float = 0.0  # on the runner's clock


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A line that is being answered, or whose answer is being written down."""

    model: str
    task: asyncio.Task[None]
    is_late: bool = False


@dataclass(slots=True, eq=False)
class _Running:
    """A batch that is being worked on."""

    record: BatchRecord
    waiting: deque[_Waiting] = field(default_factory=deque)
    later: list[_Waiting] = field(default_factory=list)
    read: int = -1  # the number of the last line that was looked at
    all_read: bool = False
    under_way: dict[int, _UnderWay] = field(default_factory=dict)
    not_before: float = 0.0  # somebody asked to wait

    @property
    def is_through(self) -> bool:
        return self.all_read and not (self.waiting or self.later or self.under_way)


class BatchWork:
    """Runs the batches of one store. `keep_s`: seconds that the files of answers are kept; `late_share`: the last part
    of a window in which one line at a time is not held still."""

    def __init__(
        self,
        store: BatchStore,
        service: LineService,
        answers: LineAnswers,
        keep_s: float,
        *,
        late_share: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = believed_time,
    ) -> None:
        self._store = store
        self._service = service
        self._answers = answers
        self._keep_s = keep_s
        self._late = LateLines(late_share)
        self._clock, self._wall = clock, wall
        self._running: dict[str, _Running] = {}
        self._on_model: Counter[str] = Counter()  # lines under way
        self._still_since: dict[str, float] = {}  # models whose lines may be standing still
        self._resting: dict[
            str, tuple[float, float]
        ] = {}  # models that were given way to: until when, and how long
        self._outcomes: list[tuple[_Running, LineOutcome]] = []
        self._wake = asyncio.Event()
        self._looked = float("-inf")
        self._told_of = False  # that the store fails
        self._task: asyncio.Task[None] | None = None
        self._lock = _Lock(store.path)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def look_now(self) -> None:
        """A batch has been created or is to be cancelled."""
        self._looked = float("-inf")
        self._wake.set()
        self.start()

    async def close(self) -> None:
        """Stop; what has no answer yet is answered by whoever opens the file next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._step_back(list(self._running.values()))
        with suppress(StateError):
            await self._write()
        self._lock.release()

    # -- the loop --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()  # before: what happens meanwhile is looked at again
            try:
                await self._look()
                self._told_of = False
            except (StateError, OSError) as error:
                if not self._told_of:
                    log.error("batches wait: %s", error)
                self._told_of = True
            except Exception:
                log.exception("batches could not go on; they are tried again")
                await asyncio.sleep(LOOK)
            idle = self._store.path is None and not self._running
            with suppress(TimeoutError):
                async with asyncio.timeout(None if idle else TICK if self._running else LOOK):
                    await self._wake.wait()

    async def _look(self) -> None:
        if self._service.draining:  # whoever drains waits for what is under way
            await self._step_back(list(self._running.values()))
            await self._write()
            return
        await self._write()
        if self._clock() >= self._looked + LOOK and self._lock.take():
            self._looked = self._clock()
            await self._find()
        for one in list(self._running.values()):
            await self._advance(one)
        await self._give_way()
        self._start_lines()
        await self._start_late()

    async def _find(self) -> None:
        """Take over what the store has: batches that are new here, and wishes to cancel."""
        found = {one.id: one for one in await asyncio.to_thread(self._store.unfinished)}
        for name in self._running.keys() - found.keys():
            await self._step_back([self._running.pop(name)])
        for name, record in found.items():
            if name in self._running:
                self._running[name].record = record
            elif record.status == VALIDATING:
                await self._begin(record)
            else:
                self._running[name] = _Running(record)

    async def _begin(self, record: BatchRecord) -> None:
        """Check all lines of a new batch, and note them."""
        read = await asyncio.to_thread(self._read, record)
        problems, now = read.problems, self._wall()
        if not problems:
            models = {line.model for line in read.lines}
            try:
                model = models.pop() if len(models) == 1 else None
                await asyncio.to_thread(self._store.begin, record.id, read.lines, model or None, now)
            except NoRoom as full:
                said = (
                    f"its lines and answers have no room: at most {full.bound} bytes are kept; delete files"
                )
                problems = [Problem("storage_full", said)]
        if problems:
            await asyncio.to_thread(self._store.fail, record.id, problems, FAILED, now)
        self._looked = float("-inf")
        self._wake.set()

    def _read(self, record: BatchRecord) -> ReadLines:
        content = self._store.content(record.input_file_id)
        return read_lines(content, record.endpoint, self._service.max_body)

    async def _advance(self, one: _Running) -> None:
        now = self._wall()
        status = one.record.status
        if status == CANCELLING:
            await self._end(one, CANCELLED, None)
        elif now >= one.record.expires_at:
            said = (
                f"the request was not answered within the completion window of {one.record.completion_window}"
            )
            await self._end(one, EXPIRED, ("batch_expired", said))
        elif one.is_through:
            await self._end(one, COMPLETED, None)
        elif not (one.waiting or one.all_read):
            found = await asyncio.to_thread(self._store.waiting, one.record, one.read, PAGE)
            one.waiting.extend(_Waiting(line, text) for line, text in found)
            one.read = found[-1][0].number if found else one.read
            one.all_read = len(found) < PAGE
        if one.later:
            clock = self._clock()
            one.waiting.extend(each for each in one.later if each.due <= clock)
            one.later = [each for each in one.later if each.due > clock]

    async def _end(self, one: _Running, status: str, left: tuple[str, str] | None) -> None:
        await self._step_back([one])
        await self._write()
        self._running.pop(one.record.id, None)
        self._late.forget(one.record.id)
        now = self._wall()
        if status == COMPLETED:
            change = partial(BatchRecord.enter, status=FINALIZING, now=now)
            await asyncio.to_thread(self._store.change, one.record.id, change)
        expires = now + self._keep_s
        await asyncio.to_thread(self._store.finish, one.record.id, status, now, expires, left)

    async def _write(self) -> None:
        """Write down what was answered; a line is under way until then."""
        while self._outcomes:
            done, self._outcomes = self._outcomes, []
            by_batch: dict[str, list[tuple[_Running, LineOutcome]]] = {}
            for entry in done:
                by_batch.setdefault(entry[0].record.id, []).append(entry)
            try:
                for name, entries in by_batch.items():
                    await asyncio.to_thread(self._store.put, name, [outcome for _, outcome in entries])
            except BaseException:
                self._outcomes = done + self._outcomes  # what was written is not written again
                raise
            for one, outcome in done:
                one.under_way.pop(outcome.line.number, None)
                self._on_model[outcome.line.model] -= 1

    # -- lines -----------------------------------------------------------------------------------------

    def _room(self, model: str) -> SpareRoom:
        try:
            return self._service.spare_room(model)
        except WeighbridgeError:  # no such model: its lines are told so
            return SpareRoom(1, 1)

    def _start_lines(self) -> None:
        """Start lines where there is room: by turns among batches, those first whose tenants have least under way."""
        clock, rooms = self._clock(), dict[str, int]()
        ready = [one for one in self._running.values() if one.waiting and one.not_before <= clock]
        while ready:
            ready.sort(key=lambda one: self._of_tenant(one.record.tenant))
            for one in ready:
                model = one.waiting[0].line.model
                if model not in rooms:
                    resting = clock < self._resting.get(model, (0.0, 0.0))[0]
                    rooms[model] = 0 if resting else self._room(model).for_new
                if self._on_model[model] < rooms[model]:
                    self._start(one, one.waiting.popleft())
                    break
            else:
                return
            ready = [one for one in ready if one.waiting]

    async def _start_late(self) -> None:
        """Start a line of each late batch that stands still, beside others' requests; one at a time for each model."""
        clock, wall = self._clock(), self._wall()
        for one in list(self._running.values()):
            record = one.record
            if one.not_before > clock or not self._late.is_late(record.created_at, record.expires_at, wall):
                continue
            held = [each for each in one.under_way.values() if not (each.is_late or each.task.done())]
            model = held[-1].model if held else one.waiting[0].line.model if one.waiting else None
            window = record.expires_at - record.created_at
            if model is None or not self._late.may_begin(record.id, model, clock, window):
                continue
            if held:  # it waits again, before the others
                await self._cancel([held[-1].task])
            if one.waiting and not self._late.under_way(one.waiting[0].line.model):
                self._late.began(one.waiting[0].line.model, clock)
                self._start(one, one.waiting.popleft(), is_late=True)

    def _of_tenant(self, tenant: str) -> int:
        return sum(len(one.under_way) for one in self._running.values() if one.record.tenant == tenant)

    def _start(self, one: _Running, line: _Waiting, *, is_late: bool = False) -> None:
        self._on_model[line.line.model] += 1
        task = asyncio.create_task(self._answer(one, line, is_late))
        one.under_way[line.line.number] = _UnderWay(line.line.model, task, is_late)

    async def _answer(self, one: _Running, waiting: _Waiting, is_late: bool) -> None:
        line, got = waiting.line, None
        try:
            priority = LATE_CLASS if is_late else SPARE_CLASS
            got = await self._answers.answer(one.record, waiting.text, priority)
        except Exception:
            log.exception("a line of a batch failed")
            got = LineAnswer(500, b'{"error":{"message":"the server failed on this request"}}', "")
        finally:
            if is_late:
                self._late.ended(line.model, self._clock())
            elif got is not None:
                self._late.progressed(one.record.id, self._clock())
            if got is None or self._again(one, waiting, got):
                if got is None:
                    one.waiting.appendleft(waiting)
                one.under_way.pop(line.number, None)
                self._on_model[line.model] -= 1
            else:
                answer = answered(one.record.id, line, got.status, got.ticket, got.body)
                used = got.used if got.status < 400 else None
                self._outcomes.append((one, LineOutcome(line, got.status >= 400, answer, used)))
                self._resting.pop(line.model, None)
            self._wake.set()

    def _again(self, one: _Running, waiting: _Waiting, got: LineAnswer) -> bool:
        """Whether a line is to be tried once more, because what it was told says nothing of it."""
        if got.status not in FOR_NOW:
            return False
        waiting.tries += 1
        if got.status in DOUBTFUL and waiting.tries >= MAX_TRIES:
            return False
        wait = min(max(got.retry_after or 0.0, FIRST_WAIT * 2 ** min(waiting.tries - 1, 10)), LONGEST_WAIT)
        waiting.due = self._clock() + wait
        one.later.append(waiting)
        if got.status in (429, 503):
            one.not_before = max(one.not_before, self._clock() + min(wait, got.retry_after or FIRST_WAIT))
        return True

    async def _give_way(self) -> None:
        """Take back lines that others are in the way of, or that are in the way of others."""
        clock = self._clock()
        for model in [model for model, count in self._on_model.items() if count]:
            room = self._room(model)
            if room.for_new:
                self._still_since.pop(model, None)
                keep = room.for_old
            else:
                since = self._still_since.setdefault(model, clock)
                keep = room.for_old if clock - since < PATIENCE else 0
            surplus = self._on_model[model] - self._late.under_way(model) - keep
            if surplus > 0:
                _, length = self._resting.get(model, (0.0, FIRST_WAIT / 2))
                length = min(2 * length, LONGEST_WAIT / 2)
                self._resting[model] = (clock + length, length)
                await self._cancel(self._of_model(model)[-surplus:])
                self._still_since.pop(model, None)
        for model in [model for model, count in self._on_model.items() if not count]:
            del self._on_model[model]

    def _of_model(self, model: str) -> list[asyncio.Task[None]]:
        """The tasks of lines for a model that have no answer yet, the last that began behind the others; not a late
        one, which nobody is in the way of."""
        lines = [line for one in self._running.values() for line in one.under_way.values()]
        return [line.task for line in lines if line.model == model and not (line.is_late or line.task.done())]

    async def _step_back(self, batches: list[_Running]) -> None:
        """End what is under way of some batches; it waits again."""
        await self._cancel([line.task for one in batches for line in one.under_way.values()])

    async def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.sleep(0)  # a task that has not begun would end without a trace, and its line with it
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Lock:
    """Which of the processes that share a file runs its batches; the system frees it when the process ends."""

    def __init__(self, path: Path | None) -> None:
        self._path = path.with_name(f"{path.name}.lock") if path is not None else None
        self._held: int | None = None

    def take(self) -> bool:
        """Raises OSError where the file of the lock cannot be had."""
        if self._path is None or self._held is not None:
            return True
        file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._held = file
        return True

    def release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None
