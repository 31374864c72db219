"""`await guess(x)`: go on with a value that is only expected, while the real one is on its way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from weighbridge.errors import BadInput
from weighbridge.flow.gate import Stakes
from weighbridge.flow.keys import Pending, freeze
from weighbridge.flow.learn import BET_OVERHEAD_SECONDS
from weighbridge.flow.predict import FunctionPredictor, GuessedCall, Prediction, Predictor
from weighbridge.flow.promise import Promise
from weighbridge.flow.record import BetRecord
from weighbridge.flow.step import current_world
from weighbridge.flow.world import Shadow

if TYPE_CHECKING:
    from weighbridge.flow.world import World

T = TypeVar("T")


def guess(
    call: Awaitable[T],
    *,
    by: Predictor | Callable[..., Any] | None = None,
    width: int = 2,
    site: str | None = None,
    risk_usd: float = 0.0,
) -> Awaitable[T]:
    """Let the flow run ahead on a prediction of `call`'s result. Outside a flow this is `call` itself.

    Awaited, or passed to another step, it stands for the real result: nothing that rests on a wrong
    prediction is ever seen. Meanwhile, if the gate finds the bet worth it, the body runs ahead on the
    predicted value, starting pure and read steps only.

    `by`: who predicts: a `Predictor`, or a function of the call's arguments (async, a step or a small model
    too); by default the flow's history. `width`: most hypotheses at once. `site`: the name under which hit
    rates are learned; by default the step's. `risk_usd`: what disclosing early is worth avoiding (R).
    """
    if width < 1:
        raise BadInput(f"guess: width={width} must be at least 1")
    if not isinstance(call, Promise) or current_world.get() is None:
        return call
    predictor = FunctionPredictor(by) if callable(by) and not hasattr(by, "predict") else by
    return Guess(call, cast("Predictor | None", predictor), width, site, risk_usd)


class Guess(Pending, Generic[T]):
    """A promise that may be run ahead of."""

    __slots__ = ("_seen", "by", "promise", "risk_usd", "site", "width")

    def __init__(
        self, promise: Promise[T], by: Predictor | None, width: int, site: str | None, risk_usd: float
    ) -> None:
        self.promise = promise
        self.by = by
        self.width = width
        self.site = site or promise.step.name
        self.risk_usd = risk_usd
        self._seen = False

    def __await__(self) -> Generator[Any, None, T]:
        world = self.promise.world
        number = self.promise.number
        if number in world.assumed:
            value = cast(T, world.assumed[number])
        else:
            self.place(world)
            value = yield from self.promise.__await__()
        if not self._seen:
            self._seen = True
            world.outcomes.setdefault(self.site, []).append(value)
        return value

    def place(self, world: World) -> None:
        """Consider betting on it, once per world."""
        promise = self.promise
        if world.run.mode != "speculate" or promise.number in world.assumed or promise.number in world.bets:
            return
        if not world.bettable:
            return
        bet = Bet(world, self)
        world.bets[promise.number] = bet
        if promise.done:
            bet.note_only()
        else:
            bet.consider()
        promise.on_settled(bet.resolve)


class Candidate:
    """One hypothesis of a bet."""

    __slots__ = ("kind", "probability", "record", "shadow", "value")

    def __init__(self, prediction: Prediction) -> None:
        self.value = prediction.value
        self.kind = prediction.kind
        self.probability = 0.0
        self.record: BetRecord | None = None
        self.shadow: Shadow | None = None


class Bet:
    """All hypotheses about one guessed call in one world."""

    def __init__(self, world: World, guessed: Guess[Any]) -> None:
        self.world = world
        self.promise = guessed.promise
        self._guess = guessed
        self._run = world.run
        self._predictor: Predictor = guessed.by or world.run.history
        outcomes = tuple(world.outcomes.get(guessed.site, ()))
        self._call = GuessedCall(guessed.site, self.promise.args, self.promise.kwargs, outcomes)
        self._candidates: list[Candidate] = []
        self._asking: asyncio.Task[None] | None = None
        self._covered = False  # an earlier bet's shadow will come to it
        self._resolved = False
        self._over = False

    @property
    def running(self) -> bool:
        """Whether a shadow runs ahead on it."""
        return not self._over and any(one.shadow is not None for one in self._candidates)

    # -- placing ---------------------------------------------------------------------------------------

    def note_only(self) -> None:
        """The result is there already: no bet, but the prediction is scored."""
        predicted = self._predict()
        if inspect.iscoroutine(predicted):
            predicted.close()
        elif predicted is not None and not inspect.isawaitable(predicted):
            self._candidates = [Candidate(one) for one in predicted[: self._guess.width]]

    def consider(self) -> None:
        """Ask the predictor, then the gate."""
        if any(bet is not self and bet.running for bet in self.world.bets.values()):
            self._covered = True
            return
        self._covered = False
        predicted = self._predict()
        if predicted is None:
            return
        if inspect.isawaitable(predicted):
            self._asking = self._run.spawn(self._ask(cast(Awaitable[Sequence[Prediction]], predicted)))
        else:
            self._judge(predicted)

    def _predict(self) -> Any:
        try:
            return self._predictor.predict(self._call)
        except Exception:
            return None  # a predictor that fails has no prediction

    async def _ask(self, predicted: Awaitable[Sequence[Prediction]]) -> None:
        try:
            predictions = await predicted
        except Exception:
            return
        if not self._resolved and not self._over and self.world.alive:
            self._judge(predictions)

    def _judge(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions[: self._guess.width]:
            candidate = Candidate(prediction)
            self._candidates.append(candidate)
            self._decide(candidate)

    def _decide(self, candidate: Candidate) -> None:
        run, site = self._run, self._run.learner.site(self._guess.site)
        stakes = self._stakes(candidate)
        verdict = run.bet_refused(stakes, self.world) or site.verdict(stakes)
        candidate.record = BetRecord(
            self._guess.site,
            self._predictor.name,
            _short(candidate.value),
            len(self.world.assumed) + 1,
            run.record.now(),
            verdict,
        )
        if verdict.launch:
            run.record.bets.append(candidate.record)
            candidate.shadow = Shadow(self.world, self.promise.number, candidate.value, candidate.probability)
            candidate.shadow.start()
        else:
            candidate.record.outcome = "declined"

    def reconsider(self) -> None:
        """A guess before this one was confirmed, so that this one is likelier now: ask the gate again."""
        for candidate in self._candidates:
            if candidate.shadow is not None:
                for bet in list(candidate.shadow.bets.values()):
                    bet.reconsider()
            elif candidate.record is not None and not self._resolved and not self._over:
                self._decide(candidate)

    def _stakes(self, candidate: Candidate) -> Stakes:
        run, name = self._run, self._guess.site
        site, steps = run.learner.site(name), run.learner.step(self.promise.step.name)
        candidate.probability = run.learner.belief(name, candidate.kind).lower()
        span = self.promise.execution.span if self.promise.execution is not None else None
        elapsed = run.record.now() - span.started if span is not None and span.started is not None else 0.0
        remaining = steps.remaining(elapsed)
        saved = min(site.saving.value, remaining) if site.saving.count else remaining
        cost = site.cost.value if site.cost.count else run.usual_usd(self.promise.step)
        return Stakes(
            candidate.probability * self.world.probability,
            run.value_per_second,
            saved,
            cost,
            site.spent.value if site.spent.count else 1.0,
            run.queue_usd(cost) + run.value_per_second * BET_OVERHEAD_SECONDS,
            self._guess.risk_usd,
        )

    # -- resolving -------------------------------------------------------------------------------------

    def resolve(self, promise: Promise[Any]) -> None:
        """The real result is there, or will never be."""
        if self._over or self._resolved:
            return
        if isinstance(promise.error, asyncio.CancelledError):
            self.give_up()
            return
        self._resolved = True
        if self._asking is not None:
            self._asking.cancel()
        outcome = freeze(promise.result()) if promise.error is None else None
        for candidate in self._candidates:
            right = promise.error is None and freeze(candidate.value) == outcome
            if candidate.record is not None and candidate.record.outcome == "open":
                self._settle(candidate, right)
        if self.world.committed:
            self.learn()
        for bet in list(self.world.bets.values()):
            if bet._covered and not bet._resolved and not self.running:
                bet.consider()

    def _settle(self, candidate: Candidate, right: bool) -> None:
        record, shadow = candidate.record, candidate.shadow
        assert record is not None
        assert shadow is not None
        candidate.shadow = None
        record.outcome = "won" if right else "lost"
        record.resolved = self._run.record.now()
        record.saved_seconds = min(shadow.active_seconds, record.resolved - record.placed) if right else 0.0
        if right:
            shadow.merge_into(self.world)
        else:
            # After the committed world has had its turn: what it needs of the shadow's work, it has then.
            asyncio.get_running_loop().call_soon(self._lose, record, shadow)

    def _lose(self, record: BetRecord, shadow: Shadow) -> None:
        record.spent_usd = shadow.kill()
        self._run.lost(record)

    def learn(self) -> None:
        """The committed world is past this guess: score every prediction, bet on or not."""
        promise, run, name = self.promise, self._run, self._guess.site
        if promise.error is not None or self._over:
            return
        self._over = True
        value = promise.result()
        outcome = freeze(value)
        for candidate in self._candidates:
            right = freeze(candidate.value) == outcome
            run.learner.observe(name, candidate.kind, right)
            record = candidate.record
            if record is not None:
                run.learner.site(name).realised.append(_realised(record, right))
                if record.outcome == "declined":
                    run.record.bets.append(record)
        self._predictor.learn(self._call, value)
        run.guessed.append((name, promise.number))

    def move_to(self, world: World, number: int) -> None:
        """Its world was confirmed and is part of `world` now."""
        known = world.bets.get(number)
        if known is not None and not known._covered:
            self.give_up()
            return
        self.world = world
        world.bets[number] = self
        if not self._resolved:
            self.reconsider()
        elif world.committed:
            self.learn()

    def give_up(self) -> None:
        """Its world is gone: the bet is neither won nor lost."""
        self._over = True
        if self._asking is not None:
            self._asking.cancel()
        for candidate in self._candidates:
            shadow, candidate.shadow = candidate.shadow, None
            if candidate.record is not None and candidate.record.outcome == "open":
                candidate.record.outcome = "moot"
            if shadow is not None:
                spent = shadow.kill()
                if candidate.record is not None:
                    candidate.record.spent_usd = spent


def _realised(record: BetRecord, right: bool) -> float:
    """Dollars that a bet brought; for a declined one, what it would have brought."""
    stakes = record.verdict.stakes
    harm = stakes.queue_usd + stakes.risk_usd
    if record.outcome == "won":
        return stakes.value_per_second * min(record.saved_seconds, stakes.saved_seconds) - harm
    if record.outcome == "lost":
        return -stakes.spent_share * stakes.cost_usd - harm
    if right:
        return stakes.value_per_second * stakes.saved_seconds - harm
    return -stakes.spent_share * stakes.cost_usd - harm


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
