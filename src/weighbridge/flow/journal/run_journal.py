"""One run in the journal: what its calls gave, and what is known of writes that were interrupted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import msgspec

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.hooks import CallView, ExecutionView, Hook, RunView
from weighbridge.flow.identity import contains_identity, digest, freeze_call
from weighbridge.flow.journal.json_values import decode, encode, return_type, shown
from weighbridge.flow.report.record import Record
from weighbridge.flow.report.record_json import record_json
from weighbridge.flow.runtime import this_execution
from weighbridge.flow.step import NotDone

#: Results that nothing rests on yet are written at least this often, in seconds.
FLUSH_SECONDS = 0.05


class InDoubt(WeighbridgeError):
    """A write had started when the run was interrupted, and nothing says whether it happened."""


class RunJournal(Hook):
    """The part of the journal that belongs to one run, and the hook that keeps it."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        flow: str,
        run_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._flow = flow
        self._digests: dict[int, str] = {}
        self._dirty = False
        self.result: bytes | None = None  # of a run that had ended
        arguments = _frozen_arguments(flow, args, kwargs)
        shown_arguments = shown({"args": list(args), **({"kwargs": kwargs} if kwargs else {})})
        self._begin(arguments, shown_arguments)
        rows = self._connection.execute(
            "SELECT key, state, value, usd FROM steps WHERE run_id = ?", (run_id,)
        ).fetchall()
        self._known: dict[str, tuple[str, bytes | None, float]] = {row[0]: row[1:] for row in rows}

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
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}", record, learner)
            raise
        self._end("done", None, record, learner)
        return decode(self.result, kind)

    def _end(self, status: str, error: str | None, record: Record, learner: Learner) -> None:
        self._write()
        self._connection.execute(
            "UPDATE runs SET status = ?, ended = ?, result = ?, error = ?, record = ? WHERE run_id = ?",
            (status, time.time(), self.result, error, record_json(record), self._run_id),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO learned VALUES (?, ?)",
            (self._flow, msgspec.json.encode(learner.as_dict())),
        )
        self.flush()

    def _restore(self, learner: Learner) -> None:
        if learner.steps or learner.sites:
            return
        row = self._connection.execute("SELECT record FROM learned WHERE flow = ?", (self._flow,)).fetchone()
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

    def recall(self, call: CallView, execution: ExecutionView) -> bool:
        state, value, _ = self._known.get(self.key(call), ("new", None, 0.0))
        if state not in ("done", "undone"):
            return False
        assert value is not None
        execution.undone = state == "undone"
        execution.finish_with(decode(value, return_type(call.step.function)))
        return True

    def started(self, call: CallView, execution: ExecutionView) -> None:
        """Make durable that a write starts. Raises InDoubt when it had started before."""
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
        self._put(call, "started", None, 0.0)
        self.flush()

    def settled(self, call: CallView) -> None:
        """Write the result down. The flow sees it as the journal gives it back."""
        if call.error is not None:
            if call.step.writes and call.execution is not None and isinstance(call.error, NotDone):
                self._forget(call)
            return
        key = self.key(call)
        if key in self._known and self._known[key][0] != "started":
            return
        combined = call.execution is None
        what = f"the result of {call.step.name}" if combined else f"the result of step {call.step.name}"
        data = encode(call.result(), return_type(call.step.function), what)
        span = call.execution.span if call.execution is not None else None
        self._put(call, "done", data, span.usd if span is not None else 0.0)
        if call.step.writes:
            self.flush()

    def undone(self, call: CallView) -> None:
        self._put(call, "undone", self._known[self.key(call)][1], 0.0)
        self.flush()

    # -- writing ---------------------------------------------------------------------------------------

    def _put(self, call: CallView, state: str, value: bytes | None, usd: float) -> None:
        self._write(call.run)
        key, step = self.key(call), call.step
        self._known[key] = (state, value, usd)
        self._connection.execute(
            "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._run_id, key, step.name, step.options.effect, state, value, usd, time.time()),
        )

    def _forget(self, call: CallView) -> None:
        key = self.key(call)
        self._known.pop(key, None)
        self._write(call.run)
        self._connection.execute("DELETE FROM steps WHERE run_id = ? AND key = ?", (self._run_id, key))
        self.flush()

    def _write(self, run: RunView | None = None) -> None:
        """Be in a transaction; it ends with the next effect, or soon."""
        if not self._dirty:
            self._dirty = True
            self._connection.execute("BEGIN IMMEDIATE")
            if run is not None:
                run.later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Make everything so far durable."""
        if self._dirty:
            self._dirty = False
            self._connection.execute("COMMIT")


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


def _renumbered(frozen: Hashable, keys: dict[int, str]) -> Hashable:
    """Return a call's identity, with the calls it refers to by their keys instead of numbers of this process."""
    if not isinstance(frozen, tuple) or not keys:
        return frozen
    if len(frozen) == 2 and frozen[0] == "promise" and isinstance(frozen[1], int):
        return ("promise", keys[frozen[1]])
    return tuple(_renumbered(part, keys) for part in frozen)
