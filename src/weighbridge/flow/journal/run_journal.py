"""One run in the journal: what its calls gave, in which order, and what is known of writes that were interrupted.

What a resumed run sees of its earlier lives comes in the order in which it saw it then (`replay.py`).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import msgspec

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.hooks import CallView, ExecutionView, GoOn, Hook, Join, RunView
from weighbridge.flow.identity import contains_identity, digest, freeze_call
from weighbridge.flow.journal.errors_json import decode_error, encode_error
from weighbridge.flow.journal.json_values import decode, encode, return_type, shown
from weighbridge.flow.journal.replay import Replay, Seen
from weighbridge.flow.journal.upkeep import tidy
from weighbridge.flow.report.record import Record
from weighbridge.flow.report.record_json import record_json
from weighbridge.flow.runtime import Diverged, this_execution
from weighbridge.flow.step import NotDone
from weighbridge.state.database import StateError, as_state_error, transaction

log = logging.getLogger("weighbridge.flow")

#: Results that nothing rests on yet are written at least this often, in seconds.
FLUSH_SECONDS = 0.05

Row = tuple[Any, ...]


class InDoubt(WeighbridgeError):
    """A write had started when the run was interrupted, and nothing says whether it happened."""


class RunJournal(Hook):
    """The part of the journal that belongs to one run, and the hook that keeps it."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        flow: str,
        run_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._connection = connection
        self._path = path
        self._run_id = run_id
        self._flow = flow
        self._unwritten: dict[str, Row | None] = {}  # rows to write by key; None: to delete
        self.result: bytes | None = None  # of a run that had ended
        arguments = _frozen_arguments(flow, args, kwargs)
        shown_arguments = shown({"args": list(args), **({"kwargs": kwargs} if kwargs else {})})
        with self._state_errors():
            self._begin(arguments, shown_arguments)
        self._read(is_paced=False)

    def _read(self, *, is_paced: bool) -> None:
        """Begin a life of the run with what earlier ones have left."""
        with self._state_errors():
            rows = self._connection.execute(
                "SELECT key, state, value, seq, elapsed, name, effect FROM steps WHERE run_id = ?",
                (self._run_id,),
            ).fetchall()
        self._digests: dict[int, str] = {}
        self._known: dict[str, tuple[str, bytes | None]] = {row[0]: (row[1], row[2]) for row in rows}
        self._places: dict[str, int] = {row[0]: row[3] for row in rows if row[3] is not None}
        self._next_place = 1 + max(self._places.values(), default=-1)
        self._errors: dict[int, int] = {}  # calls that failed, by number -> place among the settled
        self._seen: Join | None = None  # what the body had awaited when it last called a write
        seen = [Seen(row[0], row[4]) for row in sorted(rows, key=_by_place) if row[3] is not None]
        writes = {
            key: Seen(name, elapsed)
            for key, state, _, _, elapsed, name, effect in rows
            if effect in ("undo", "write") and state != "declined"
        }
        self._replay = Replay(self._run_id, seen, writes, is_paced=is_paced)

    def _begin(self, arguments: str, shown_arguments: str) -> None:
        row = self._connection.execute(
            "SELECT flow, arguments_digest, arguments, status, result FROM runs WHERE run_id = ?",
            (self._run_id,),
        ).fetchone()
        if row is None:
            self._connection.execute(
                "INSERT INTO runs (run_id, flow, arguments, arguments_digest, status, began) "
                "VALUES (?, ?, ?, ?, 'running', ?)",
                (self._run_id, self._flow, shown_arguments, arguments, time.time()),
            )
            return
        if row[0] != self._flow or row[1] != arguments:
            raise BadInput(
                f"run {self._run_id} is one of {row[0]} with {row[2]}; resume it so, or choose another run id"
            )
        if row[3] == "done":
            self.result = row[4]

    async def execute(
        self, run: Callable[[], Awaitable[Any]], kind: Any, record: Record, learner: Learner
    ) -> Any:
        """Return the run's result, of type `kind`: as it was journaled, else by running what is left of the run."""
        if self.result is not None:
            record.ended_at = record.clock()
            return decode(self.result, kind)
        self._restore(learner)
        try:
            self.result = encode(await run(), kind, f"the result of flow {self._flow}")
            self._replay.check_end()
        except BaseException as error:
            self.result = None
            if isinstance(error, Diverged) and not self._replay.is_paced:
                raise
            try:
                self._end("failed", f"{type(error).__name__}: {error}", record, learner)
            except StateError as unwritten:
                log.error("how run %s ended was not written down: %s", self._run_id, unwritten)
            raise
        self._end("done", None, record, learner)
        self._tidy()
        return decode(self.result, kind)

    def goes_again(self) -> bool:
        """After Diverged: begin the life anew, in the time that the earlier ones took; False after that, too.

        Time-outs of a flow's body pass again then, which they do not when results come as soon as they can.
        """
        if self._replay.is_paced:
            return False
        self.flush()
        self._read(is_paced=True)
        return True

    def _end(self, status: str, error: str | None, record: Record, learner: Learner) -> None:
        self.flush()
        with self._state_errors(), transaction(self._connection) as journal:
            journal.execute(
                "UPDATE runs SET status = ?, ended = MAX(?, began), result = ?, error = ?, record = ? "
                "WHERE run_id = ?",
                (status, time.time(), self.result, error, record_json(record), self._run_id),
            )
            journal.execute(
                "INSERT OR REPLACE INTO learned VALUES (?, ?)",
                (self._flow, msgspec.json.encode(learner.as_dict())),
            )

    def _tidy(self) -> None:
        """Of runs that are done only the latest are kept whole, and their results for longer."""
        try:
            with self._state_errors():
                dropped = tidy(self._connection)
        except StateError as error:
            log.warning("old runs were not dropped: %s", error)
        else:
            if dropped:
                log.info("the journal %s has dropped %d rows of old runs", self._path, dropped)

    def _restore(self, learner: Learner) -> None:
        if learner.steps or learner.sites:
            return
        with self._state_errors():
            row = self._connection.execute(
                "SELECT record FROM learned WHERE flow = ?", (self._flow,)
            ).fetchone()
        if row is not None:
            learner.restore(decode(row[0], dict[str, Any]))

    # -- calls -----------------------------------------------------------------------------------------

    def key(self, call: CallView) -> str:
        """Return the journal key of a call. Raises BadInput for arguments that exist only in this process."""
        digested = self._digests.get(call.number)
        if digested is not None:
            return digested
        unstable = contains_identity(call.identity)
        if unstable is not None:
            kind = type(unstable).__name__
            raise BadInput(
                f"step {call.step.name}: an argument of type {kind} cannot be journaled; pass plain data"
            )
        numbers = {dep.number: dep for dep in call.deps}
        stable = _renumbered(call.identity, {number: self.key(dep) for number, dep in numbers.items()})
        self._digests[call.number] = key = digest((stable, call.occurrence))
        return key

    def called(self, call: CallView) -> None:
        if call.step.writes:
            with suppress(BadInput):  # which `recall` raises where the caller sees it
                self._replay.called(self.key(call))
            self._keep_caught_errors(call.frontier)

    def recall(self, call: CallView, execution: ExecutionView) -> bool:
        state, value = self._known.get(self.key(call), ("new", None))
        if state in ("new", "started"):
            return False
        assert value is not None
        execution.undone = state == "undone"
        if state in ("failed", "declined"):
            execution.finish_with(None, decode_error(value, call.step.name))
        else:
            execution.finish_with(decode(value, return_type(call.step.function)))
        return True

    def hold_start(self, call: CallView, go_on: GoOn) -> bool:
        """A new write waits until every write that has happened was called again."""
        if not call.step.writes or self.key(call) in self._known:
            return False
        return self._replay.holds_start(call.run, go_on)

    def hold_result(self, call: CallView, error: BaseException | None, go_on: GoOn) -> bool:
        """A resumed run sees results in their recorded order. What a write has done now is written down at once."""
        if self._replay.over or (call.step.writes and not self._is_recorded(call)):
            return False
        self._replay.arrives(call, self.key(call), go_on)
        return True

    def _is_recorded(self, call: CallView) -> bool:
        return self._known.get(self.key(call), ("new", None))[0] not in ("new", "started")

    def awaited(self, call: CallView) -> None:
        self._replay.awaited(call)

    def started(self, call: CallView, execution: ExecutionView) -> None:
        """Make durable that a write starts. Raises InDoubt when it had started before, Diverged past another one."""
        if not call.step.writes:
            return
        key = execution.journal_key = self.key(call)
        if key in self._known:
            if call.step.options.settle is None:
                raise InDoubt(
                    f"step {call.step.name} had started when run {self._run_id} was interrupted, and may "
                    "or may not have happened; give it settle=function, which looks that up"
                )
            execution.in_doubt = True
            return
        self._replay.check_write(call)
        self._put(call, "started", None)
        try:
            self.flush()
        except StateError:
            del self._known[key], self._unwritten[key]  # it does not start
            raise

    def settled(self, call: CallView) -> None:
        """Write the result down. The flow sees it as the journal gives it back."""
        if call.error is not None:
            self._failed(call, call.error)
            return
        if self._is_recorded(call) or (self._replay.is_lost and not call.step.writes):
            return
        combined = call.execution is None
        what = f"the result of {call.step.name}" if combined else f"the result of step {call.step.name}"
        data = encode(call.result(), return_type(call.step.function), what)
        span = call.execution.span if call.execution is not None else None
        self._put(call, "done", data, span.usd if span is not None else 0.0, self._place())
        if call.step.writes:
            self.flush()

    def _failed(self, call: CallView, error: BaseException) -> None:
        if not self._replay.over:
            self._replay.let_go(call, self._digests.get(call.number, ""))
        if isinstance(error, asyncio.CancelledError | InDoubt | Diverged) or self._is_recorded(call):
            return
        self._errors[call.number] = self._place()
        if isinstance(error, NotDone) and call.step.writes and call.execution is not None:
            self._forget(call)

    def _keep_caught_errors(self, frontier: Join | None) -> None:
        """Errors that the body has seen and lived with are part of why it calls a write now."""
        join, seen, self._seen = frontier, self._seen, frontier
        while join is not None and join is not seen:
            call, join = join.call, join.before
            place = self._errors.pop(call.number, None)
            if place is not None and call.error is not None:
                state = "declined" if isinstance(call.error, NotDone) else "failed"
                self._put(call, state, encode_error(call.error), 0.0, place)

    def undone(self, call: CallView) -> None:
        key = self.key(call)
        state, value = self._known.get(key, ("new", None))
        if state == "done":
            self._put(call, "undone", value, 0.0, self._places.get(key))
            self.flush()
        elif state == "started":  # nobody knew whether it had happened; now it has not
            self._forget(call)

    # -- writing ---------------------------------------------------------------------------------------

    def _place(self) -> int:
        """Return the next place among the calls that have settled."""
        self._next_place += 1
        return self._next_place - 1

    def _put(
        self, call: CallView, state: str, value: bytes | None, usd: float = 0.0, seq: int | None = None
    ) -> None:
        key, step = self.key(call), call.step
        self._known[key] = (state, value)
        if seq is not None:
            self._places[key] = seq
        row = (self._run_id, key, step.name, step.options.effect, state, value, usd, time.time(), seq)
        self._write(key, (*row, self._replay.elapsed(call.run)), call.run)

    def _forget(self, call: CallView) -> None:
        key = self.key(call)
        self._known.pop(key, None)
        self._write(key, None, call.run)
        self.flush()

    def _write(self, key: str, row: Row | None, run: RunView) -> None:
        """Write a row with the next effect, or soon."""
        if not self._unwritten:
            run.later(FLUSH_SECONDS, self._flush_now_and_then)
        self._unwritten[key] = row

    def _flush_now_and_then(self) -> None:
        try:
            self.flush()
        except StateError as error:  # it stays to be written, and the next effect waits for that
            log.warning("%s; run %s goes on and tries again", error, self._run_id)

    def flush(self) -> None:
        """Make everything so far durable. Raises StateError; then it is all still to be written."""
        if not self._unwritten:
            return
        with self._state_errors(), transaction(self._connection) as journal:
            for key, row in self._unwritten.items():
                if row is None:
                    journal.execute("DELETE FROM steps WHERE run_id = ? AND key = ?", (self._run_id, key))
                else:
                    journal.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._unwritten.clear()

    def _state_errors(self) -> AbstractContextManager[None]:
        return as_state_error("journal", self._path)


def idempotency_key() -> str:
    """Inside a step: a key to send along, the same for the same call of the same run, also after a crash."""
    execution = this_execution()
    if execution is None:
        raise BadInput("idempotency_key is for use inside a step that a flow has called")
    return f"{execution.run.run_id}-{execution.journal_key or digest(execution.key)}"


def _frozen_arguments(flow: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    frozen = freeze_call(args, kwargs)
    unstable = contains_identity(frozen)
    if unstable is not None:
        kind = type(unstable).__name__
        raise BadInput(f"flow {flow}: an argument of type {kind} cannot be journaled; pass plain data")
    return digest(frozen)


def _by_place(row: Row) -> int:
    return -1 if row[3] is None else int(row[3])


def _renumbered(frozen: Hashable, keys: dict[int, str]) -> Hashable:
    """Return a call's identity, with the calls it refers to by their keys instead of numbers of this process."""
    if not isinstance(frozen, tuple) or not keys:
        return frozen
    if len(frozen) == 2 and frozen[0] == "promise" and isinstance(frozen[1], int):
        return ("promise", keys[frozen[1]])
    return tuple(_renumbered(part, keys) for part in frozen)
