"""A bet: the hypotheses about one guessed call, from the gate's verdict to what came of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, cast

from weighbridge.flow.bets.gate import Stakes
from weighbridge.flow.bets.learn import BET_OVERHEAD_SECONDS
from weighbridge.flow.bets.predict import GuessedCall, Prediction, Predictor
from weighbridge.flow.identity import freeze
from weighbridge.flow.promise import Promise
from weighbridge.flow.report.record import BetRecord
from weighbridge.flow.shadow import Shadow

if TYPE_CHECKING:
    from weighbridge.flow.bets.guess import Guess
    from weighbridge.flow.world import World


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
            run.queue_usd() + run.value_per_second * BET_OVERHEAD_SECONDS,
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
    """Dollars that a bet brought. For a declined one, what it would have brought where nobody waits: a busy
    hour says nothing against the site's predictions."""
    stakes = record.verdict.stakes
    if record.outcome == "declined":
        gain = stakes.value_per_second * stakes.saved_seconds
        return (gain if right else -stakes.spent_share * stakes.cost_usd) - stakes.risk_usd
    harm = stakes.queue_usd + stakes.risk_usd
    if record.outcome == "won":
        return stakes.value_per_second * min(record.saved_seconds, stakes.saved_seconds) - harm
    if record.outcome == "lost" or not right:
        return -stakes.spent_share * stakes.cost_usd - harm
    return stakes.value_per_second * stakes.saved_seconds - harm


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
