"""Predictors: a history of outcomes, a function, or a small model. None of them says how sure it is."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from weighbridge.flow.identity import contains_identity, digest, freeze


@dataclass(frozen=True, slots=True)
class Prediction:
    """A hypothesis. How often predictions of one `kind` come true is learned, per call site."""

    value: Any
    kind: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class GuessedCall:
    """What is known when a guess is made: the call, and earlier outcomes at this site in this run."""

    site: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outcomes: tuple[Any, ...] = ()


class Predictor(Protocol):
    """Anything that predicts outcomes of calls."""

    name: str

    def predict(self, call: GuessedCall) -> Sequence[Prediction] | Awaitable[Sequence[Prediction]]:
        """Hypotheses, the likeliest first; none when there is nothing to go by."""
        ...

    def learn(self, call: GuessedCall, outcome: Any) -> None:
        """Learn what the call really gave, once the flow is sure of it."""
        ...


class FunctionPredictor:
    """A function of the call's arguments: sync or async, plain or a step (a small model, say).

    It returns the value it expects, or a `Several` of them with the likeliest first. Raising, or returning
    `NOTHING`, means no prediction.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = str(getattr(function, "__qualname__", None) or getattr(function, "name", "function"))
        code = getattr(function, "__code__", None)
        line = f":{code.co_firstlineno}" if code is not None and "<lambda>" in name else ""
        self.name = name.rsplit("<locals>.", 1)[-1] + line
        self._function = function

    def predict(self, call: GuessedCall) -> Sequence[Prediction] | Awaitable[Sequence[Prediction]]:
        result = self._function(*call.args, **call.kwargs)
        return self._later(result) if inspect.isawaitable(result) else self._ranked(result)

    async def _later(self, result: Awaitable[Any]) -> Sequence[Prediction]:
        return self._ranked(await result)

    def _ranked(self, result: Any) -> Sequence[Prediction]:
        if result is NOTHING:
            return ()
        values = result.values if isinstance(result, Several) else (result,)
        return [Prediction(value, (self.name, rank)) for rank, value in enumerate(values)]

    def learn(self, call: GuessedCall, outcome: Any) -> None:
        """A function does not learn; how often it is right is learned all the same."""


class _Nothing:
    def __repr__(self) -> str:
        return "NOTHING"


#: Returned by a predicting function that has no idea.
NOTHING = _Nothing()


class Several:
    """More than one hypothesis, the likeliest first."""

    __slots__ = ("values",)

    def __init__(self, *values: Any) -> None:
        self.values = values


class _Outcomes:
    """Outcomes seen in one context, with counts that halve when they grow, so that the recent ones lead."""

    __slots__ = ("counts",)

    def __init__(self, rows: Sequence[Sequence[Any]] = ()) -> None:
        self.counts: dict[Hashable, tuple[int, Any]] = {
            freeze(value): (count, value) for count, value in rows
        }

    def as_rows(self) -> list[list[Any]]:
        """Counts and outcomes, of those that JSON gives back as they are."""
        return [[count, value] for count, value in self.counts.values() if _is_json(value)]

    def add(self, value: Any) -> None:
        key = freeze(value)
        count = self.counts.get(key, (0, None))[0] + 1
        self.counts[key] = (count, value)
        if count >= 16 or len(self.counts) > 16:
            self.counts = {k: (c // 2, v) for k, (c, v) in self.counts.items() if c >= 2}

    def ranked(self) -> list[tuple[int, Any]]:
        return sorted(self.counts.values(), key=lambda entry: -entry[0])


#: A call site, the length of the context (-1: the arguments), and the context.
_Context = tuple[str, int, Hashable]
#: An outcome nested deeper is not carried from one process to the next.
_DEEPEST = 16


def _saved_as(context: _Context) -> tuple[str, int, str]:
    return context[0], context[1], digest(context[2])


def _is_json(value: Any, depth: int = 0) -> bool:
    if depth > _DEEPEST:
        return False
    kind = type(value)
    if kind is list:
        return all(_is_json(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str and _is_json(item, depth + 1) for key, item in value.items())
    if kind is float:
        return isfinite(value)
    return kind is str or kind is int or kind is bool or value is None


class History:
    """Short-history tables in a tournament, after branch predictors (McFarling 1993).

    One table maps the call's arguments to its outcome; others map the last 0 to `order` outcomes at this
    site in this run to the next. Which table speaks is decided by how well each did at the site lately.
    """

    name = "history"
    MAX_CONTEXTS = 4096

    #: Contexts that go from one process to the next, the latest of those that can be written down.
    SAVED_CONTEXTS = 512

    def __init__(self, order: int = 3) -> None:
        self._order = order
        self._tables: dict[_Context, _Outcomes] = {}
        self._scores: dict[tuple[str, int], float] = {}
        self._earlier: dict[
            tuple[str, int, str], _Outcomes
        ] = {}  # of an earlier process, by digests of contexts

    def predict(self, call: GuessedCall) -> Sequence[Prediction]:
        speaking = [
            (self._scores.get((call.site, table), 0.5), table, outcomes)
            for table, key in self._contexts(call)
            if (outcomes := self._outcomes(key)) is not None and outcomes.counts
        ]
        if not speaking:
            return ()
        _, _, outcomes = max(speaking, key=lambda entry: entry[:2])
        ranked = outcomes.ranked()
        return [
            Prediction(value, ("history", rank, min(count, 4).bit_length()))
            for rank, (count, value) in enumerate(ranked)
        ]

    def learn(self, call: GuessedCall, outcome: Any) -> None:
        key = freeze(outcome)
        for table, context in self._contexts(call):
            outcomes = self._outcomes(context)
            if outcomes is None:
                if len(self._tables) >= self.MAX_CONTEXTS:
                    self._tables.pop(next(iter(self._tables)))
                outcomes = self._tables[context] = _Outcomes()
            elif outcomes.counts:
                right = freeze(outcomes.ranked()[0][1]) == key
                score = self._scores.get((call.site, table), 0.5)
                self._scores[call.site, table] = score + 0.1 * (float(right) - score)
            outcomes.add(outcome)

    def _outcomes(self, context: _Context) -> _Outcomes | None:
        outcomes = self._tables.get(context)
        if outcomes is None and self._earlier:
            outcomes = self._earlier.pop(_saved_as(context), None)
            if outcomes is not None:
                self._tables[context] = outcomes
        return outcomes

    # -- between processes -----------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the latest contexts whose outcomes are JSON, and how well tables did."""
        saved: list[Any] = [
            [*context, rows] for context, outcomes in self._earlier.items() if (rows := outcomes.as_rows())
        ]
        for context, outcomes in self._tables.items():
            if contains_identity(context[2]) is None and (rows := outcomes.as_rows()):
                saved.append([*_saved_as(context), rows])
        scores = [[*place, score] for place, score in self._scores.items()]
        return {"contexts": saved[-self.SAVED_CONTEXTS :], "scores": scores}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `as_dict` of an earlier process gave."""
        for site, length, digested, rows in saved["contexts"]:
            self._earlier[site, length, digested] = _Outcomes(rows)
        for site, table, score in saved["scores"]:
            self._scores[site, table] = score

    def _contexts(self, call: GuessedCall) -> list[tuple[int, _Context]]:
        arguments = (freeze(call.args), freeze(call.kwargs))
        contexts: list[tuple[int, _Context]] = [(-1, (call.site, -1, arguments))]
        for length in range(min(self._order, len(call.outcomes)) + 1):
            recent = call.outcomes[len(call.outcomes) - length :]
            contexts.append((length, (call.site, length, freeze(recent))))
        return contexts
