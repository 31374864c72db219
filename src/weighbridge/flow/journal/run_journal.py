"""One run in the journal: what its calls gave, and what is known of writes that were interrupted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.execution import Execution
from weighbridge.flow.identity import contains_identity, digest, freeze_call
from weighbridge.flow.journal.json_values import decode, encode, return_type, shown
from weighbridge.flow.promise import Promise
from weighbridge.flow.report.record_json import learned_json, record_json
from weighbridge.flow.step import NotDone, Step, current_execution

if TYPE_CHECKING:
    from weighbridge.flow.flow import Flow
    from weighbridge.flow.run import Run

#: Results that nothing rests on yet are written at least this often, in seconds.
FLUSH_SECONDS = 0.05


class InDoubt(WeighbridgeError):
    """A write had started when the run was interrupted, and nothing says whether it happened."""


class RunJournal:
    """The part of the journal that belongs to one run."""

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
        self._run: Run | None = None
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

    async def execute(self, flow: Flow[Any, Any], run: Run) -> Any:
        """The run's result: from the journal when it had ended, else by running what is left of it."""
        kind = return_type(flow.function)
        if self.result is not None:
            return decode(self.result, kind)
        self._run = run
        self._restore_learned(flow)
        try:
            result = await run.execute()
            data = encode(result, kind, f"the result of flow {flow.name}")
        except BaseException as error:
            self._end(flow, run, "failed", None, f"{type(error).__name__}: {error}")
            raise
        self._end(flow, run, "done", data, None)
        return decode(data, kind)

    def _end(
        self, flow: Flow[Any, Any], run: Run, status: str, result: bytes | None, error: str | None
    ) -> None:
        self._write()
        self._connection.execute(
            "UPDATE runs SET status = ?, ended = ?, result = ?, error = ?, record = ? WHERE run_id = ?",
            (status, time.time(), result, error, record_json(run.record), self._run_id),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO learned VALUES (?, ?)", (self._flow, learned_json(flow.learner))
        )
        self.flush()

    def _restore_learned(self, flow: Flow[Any, Any]) -> None:
        if flow.learner.steps or flow.learner.sites:
            return
        row = self._connection.execute("SELECT record FROM learned WHERE flow = ?", (self._flow,)).fetchone()
        if row is not None:
            flow.learner.restore(decode(row[0], dict[str, Any]))

    # -- calls -----------------------------------------------------------------------------------------

    def key(self, promise: Promise[Any]) -> str:
        """The journal key of a call. Raises BadInput for arguments that exist only in this process."""
        known = self._digests.get(promise.number)
        if known is not None:
            return known
        found = contains_identity(promise.identity)
        if found is not None:
            kind = type(found).__name__
            raise BadInput(
                f"step {promise.step.name}: an argument of type {kind} cannot be journaled; pass plain data"
            )
        numbers = {dep.number: dep for dep in promise.deps}
        stable = _renumbered(promise.identity, {n: self.key(dep) for n, dep in numbers.items()})
        self._digests[promise.number] = key = digest((stable, promise.occurrence))
        return key

    def recall(self, promise: Promise[Any], execution: Execution) -> bool:
        """Whether the call had ended before; then its execution has its result."""
        known = self._known.get(self.key(promise))
        if known is None or known[0] not in ("done", "undone"):
            return False
        assert known[1] is not None
        execution.finish_with(decode(known[1], return_type(promise.step.function)))
        return True

    def begin(self, promise: Promise[Any], execution: Execution) -> None:
        """A write is about to start: make that durable. Raises InDoubt when it had started before."""
        key = execution.journal_key = self.key(promise)
        known = self._known.get(key)
        if known is not None:
            if promise.step.options.settle is None:
                raise InDoubt(
                    f"step {promise.step.name} had started when run {self._run_id} was interrupted, and may "
                    "or may not have happened; give it settle=function, which looks that up"
                )
            execution.in_doubt = True
            return
        self._put(key, promise.step, "started", None, 0.0)
        self.flush()

    def remember(self, promise: Promise[Any]) -> None:
        """A call of the committed world has settled. The flow sees its result as the journal gives it back."""
        execution = promise.execution
        if execution is None or execution.error is not None:
            if promise.step.writes and isinstance(promise.error, NotDone):
                self._forget(promise)
            return
        key = self.key(promise)
        if key in self._known and self._known[key][0] != "started":
            return
        kind = return_type(promise.step.function)
        data = encode(execution.value, kind, f"the result of step {promise.step.name}")
        usd = execution.span.usd if execution.span is not None else 0.0
        self._put(key, promise.step, "done", data, usd)
        if promise.step.writes:
            self.flush()

    def recall_combined(self, promise: Promise[Any]) -> None:
        known = self._known.get(self.key(promise))
        if known is not None and known[1] is not None:
            promise.settle(decode(known[1], Any))

    def remember_combined(self, promise: Promise[Any], value: Any) -> None:
        self._put(self.key(promise), promise.step, "done", encode(value, Any, "the result of first"), 0.0)

    def undone(self, promise: Promise[Any]) -> bool:
        """Whether a step's effect has been taken back."""
        known = self._known.get(self.key(promise))
        return known is not None and known[0] == "undone"

    def mark_undone(self, promise: Promise[Any]) -> None:
        key = self.key(promise)
        self._put(key, promise.step, "undone", self._known[key][1], 0.0)
        self.flush()

    # -- writing ---------------------------------------------------------------------------------------

    def _put(self, key: str, step: Step[..., Any], state: str, value: bytes | None, usd: float) -> None:
        self._write()
        self._known[key] = (state, value, usd)
        self._connection.execute(
            "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._run_id, key, step.name, step.options.effect, state, value, usd, time.time()),
        )

    def _forget(self, promise: Promise[Any]) -> None:
        key = self.key(promise)
        self._known.pop(key, None)
        self._write()
        self._connection.execute("DELETE FROM steps WHERE run_id = ? AND key = ?", (self._run_id, key))
        self.flush()

    def _write(self) -> None:
        """Be in a transaction; it ends with the next effect, or soon."""
        if not self._dirty:
            self._dirty = True
            self._connection.execute("BEGIN IMMEDIATE")
            if self._run is not None:
                self._run.later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Make everything so far durable."""
        if self._dirty:
            self._dirty = False
            self._connection.execute("COMMIT")


def idempotency_key() -> str:
    """Inside a step: the same for the same call of the same run, also after a crash; to send along with it."""
    execution = current_execution.get()
    if execution is None:
        raise BadInput("idempotency_key is for use inside a step that a flow has called")
    return f"{execution.run.record.run_id}-{execution.journal_key or digest(execution.key)}"


def _frozen_arguments(flow: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    frozen = freeze_call(args, kwargs)
    found = contains_identity(frozen)
    if found is not None:
        kind = type(found).__name__
        raise BadInput(f"flow {flow}: an argument of type {kind} cannot be journaled; pass plain data")
    return digest(frozen)


def _renumbered(frozen: Hashable, keys: dict[int, str]) -> Hashable:
    """A call's identity with the calls it refers to by their keys instead of numbers of this process."""
    if not isinstance(frozen, tuple) or not keys:
        return frozen
    if len(frozen) == 2 and frozen[0] == "promise" and isinstance(frozen[1], int):
        return ("promise", keys[frozen[1]])
    return tuple(_renumbered(part, keys) for part in frozen)
