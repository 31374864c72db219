"""`await guess(x)`: go on with a value that is only expected, while the real value is on its way.

A *guess* stands for a call whose result is predicted. Where it is awaited or passed on, a *bet* is placed on it: the
predictor names hypotheses, the gate decides for each, and a shadow runs ahead on those that pay. *Bets* are those of
one run: what they may risk, what they brought, and what is learned from that.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from weighbridge.errors import BadInput
from weighbridge.flow.bets.call_graph import nodes_of
from weighbridge.flow.bets.gate import BetVerdict, Stakes, queue_usd, saving
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.bets.predict import FunctionPredictor, GuessedCall, Prediction, Predictor
from weighbridge.flow.bets.shadow import ShadowWorld
from weighbridge.flow.budget import Budget
from weighbridge.flow.hooks import CallView, ExecutionView, Hook, RunView, StepSpan
from weighbridge.flow.identity import Pending, freeze
from weighbridge.flow.runtime import Promise, World, this_world
from weighbridge.flow.step import Step

T = TypeVar("T")

#: Guesses behind each other, and shadows alive at once, whatever the gate thinks of more.
MAX_DEPTH, MAX_SHADOWS = 16, 64
#: Node visits that a run may spend on learning what guesses would have saved.
MAX_LEARN_VISITS = 200_000
#: Event-loop time that placing a bet costs everybody: running the body once more.
BET_OVERHEAD_SECONDS = 0.001
#: Latest executions whose price a first bet is judged by.
RECENT_SPANS = 32


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
    too); by default the flow's history. `width`: how many hypotheses at once. `site`: the name under which hit
    rates are learned; by default the step's. `risk_usd`: what disclosing early is worth avoiding (R).
    """
    if width < 1:
        raise BadInput(f"guess: width={width} must be at least 1")
    if not isinstance(call, Promise) or this_world() is None:
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
        number = self.promise.number
        if not world.bettable or number in world.assumed or number in world.bets:
            return
        bets = world.run.hook(Bets)
        if bets is not None:
            bets.place(world, self)


# -- what became of a bet --------------------------------------------------------------------------------------

BetOutcome = Literal["open", "won", "lost", "declined", "moot"]


@dataclass(slots=True)
class BetRecord:
    """One hypothesis that was considered: what the gate said and what came of it."""

    site: str
    predictor: str
    prediction: str
    depth: int
    placed: float
    verdict: BetVerdict
    outcome: BetOutcome = "open"
    resolved: float | None = None
    saved_seconds: float = 0.0  # how long the shadow worked before the guess was confirmed
    spent_usd: float = 0.0  # by executions of the shadow that nobody used

    def realised_usd(self, right: bool) -> float:
        """Dollars that the bet brought. For a declined bet, what it would have brought where nobody waits: a busy
        hour says nothing against the site's predictions."""
        stakes = self.verdict.stakes
        saved = (
            min(self.saved_seconds, stakes.saved_seconds) if self.outcome == "won" else stakes.saved_seconds
        )
        gain = stakes.value_per_second * saved if right else -stakes.spent_share * stakes.cost_usd
        return gain - stakes.risk_usd - (0.0 if self.outcome == "declined" else stakes.queue_usd)


class RunSoFar(Protocol):
    """What the record of a run holds while it goes on."""

    calls: list[CallView]
    spans: list[StepSpan]
    bets: list[BetRecord]


# -- the bets of a run -----------------------------------------------------------------------------------------


class Bets(Hook):
    """All bets of one run."""

    def __init__(
        self,
        learner: Learner,
        record: RunSoFar,
        *,
        value_per_second: float,
        budget: Budget,
    ) -> None:
        self.learner = learner
        self.record = record
        self.value_per_second = value_per_second
        self.shadows = 0  # alive
        self.wasted_usd = 0.0
        self._budget = budget
        self._guessed: list[tuple[str, int]] = []  # site and call of each guess the flow came by

    def place(self, world: World, guess: Guess[Any]) -> None:
        promise = guess.promise
        bet = Bet(self, world, guess)
        world.bets[promise.number] = bet
        if promise.done:
            bet.note_only()
        else:
            bet.consider()
        promise.on_settled(bet.resolve)

    def usual_usd(self, step: Step[..., Any]) -> float:
        """Return the price of what follows a guess before it is known: the highest so far, or this step's."""
        averages = [times.usd.value for times in self.learner.steps.values() if times.usd.count]
        recent = islice(reversed(self.record.spans), RECENT_SPANS)
        return max([step.options.usd, *averages, *[span.usd for span in recent]])

    def queue_usd(self) -> float:
        """Q: what one call of each model that the flow uses does to those who wait there."""
        waiting = sum(server.queued_seconds() for server in self.learner.servers)
        return queue_usd(self.value_per_second, waiting)

    def refusal(self, stakes: Stakes, world: World) -> BetVerdict | None:
        """Return a reason to decline beyond the gate's inequality, if there is one."""
        if len(world.assumed) >= MAX_DEPTH:
            return BetVerdict(False, f"{MAX_DEPTH} guesses behind each other already", stakes)
        if self.shadows >= MAX_SHADOWS:
            return BetVerdict(False, f"{MAX_SHADOWS} shadows already", stakes)
        budget = self._budget
        at_risk = (1.0 - stakes.probability) * stakes.spent_share * stakes.cost_usd
        whole = budget.usd if budget.usd is not None else world.run.usd + stakes.cost_usd
        if at_risk > 0.0 and self.wasted_usd + at_risk > budget.waste * whole:
            reason = f"budget: ${self.wasted_usd:.3g} wasted, at most {budget.waste:.0%} of ${whole:.3g}"
            return BetVerdict(False, reason, stakes)
        return None

    def lost(self, record: BetRecord) -> None:
        """The shadow of a lost bet is gone."""
        self.wasted_usd += record.spent_usd
        cost = record.verdict.stakes.cost_usd
        if cost > 0.0:
            self.learner.site(record.site).spent.add(min(record.spent_usd / cost, 1.0))

    def passed(self, site: str, number: int) -> None:
        """The committed world is past this guess."""
        self._guessed.append((site, number))

    def ended(self, run: RunView) -> None:
        """Learn what right guesses would have saved in this run, and what they would have started."""
        if run.error is not None or not self._guessed:
            return
        nodes, position_of = nodes_of(self.record.calls, run.frontier)
        affordable = max(MAX_LEARN_VISITS // max(len(nodes), 1), 1)
        for name, number in self._guessed[-affordable:]:
            if number in position_of:
                drop = saving(nodes, position_of[number])
                site = self.learner.site(name)
                site.saving.add(drop.seconds)
                site.cost.add(drop.usd)


# -- one bet ---------------------------------------------------------------------------------------------------


class Hypothesis:
    """One predicted value of a bet."""

    __slots__ = ("kind", "probability", "record", "shadow", "value")

    def __init__(self, prediction: Prediction) -> None:
        self.value = prediction.value
        self.kind = prediction.kind
        self.probability = 0.0
        self.record: BetRecord | None = None
        self.shadow: ShadowWorld | None = None


class Bet:
    """All hypotheses about one guessed call in one world, from the gate's verdict to what came of them."""

    def __init__(self, bets: Bets, world: World, guess: Guess[Any]) -> None:
        self.world = world
        self.promise = guess.promise
        self._bets = bets
        self._guess = guess
        self._run = world.run
        self._predictor: Predictor = guess.by or bets.learner.history
        outcomes = tuple(world.outcomes.get(guess.site, ()))
        self._call = GuessedCall(guess.site, self.promise.args, self.promise.kwargs, outcomes)
        self._hypotheses: list[Hypothesis] = []
        self._asking: asyncio.Task[None] | None = None
        self._covered = False  # an earlier bet's shadow will come to it
        self._resolved = False
        self._over = False

    @property
    def running(self) -> bool:
        """Whether a shadow runs ahead on it."""
        return not self._over and any(hypothesis.shadow is not None for hypothesis in self._hypotheses)

    # -- placing ---------------------------------------------------------------------------------------

    def note_only(self) -> None:
        """The result is there already: no bet, but the prediction is scored."""
        predicted = self._predict()
        if inspect.iscoroutine(predicted):
            predicted.close()
        elif predicted is not None and not inspect.isawaitable(predicted):
            self._hypotheses = [Hypothesis(prediction) for prediction in predicted[: self._guess.width]]

    def consider(self) -> None:
        """Ask the predictor, then the gate."""
        if any(bet is not self and bet.running for bet in _bets_in(self.world)):
            self._covered = True
            return
        self._covered = False
        predicted = self._predict()
        if predicted is None:
            return
        if inspect.isawaitable(predicted):
            asking = self._ask(cast(Awaitable[Sequence[Prediction]], predicted))
            self._asking = self._run.nursery.spawn(asking)
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
            hypothesis = Hypothesis(prediction)
            self._hypotheses.append(hypothesis)
            self._decide(hypothesis)

    def _decide(self, hypothesis: Hypothesis) -> None:
        bets, site = self._bets, self._bets.learner.site(self._guess.site)
        stakes = self._stakes(hypothesis)
        verdict = bets.refusal(stakes, self.world) or site.verdict(stakes)
        hypothesis.record = BetRecord(
            self._guess.site,
            self._predictor.name,
            _short(hypothesis.value),
            len(self.world.assumed) + 1,
            self._run.now(),
            verdict,
        )
        if verdict.launch:
            bets.record.bets.append(hypothesis.record)
            bets.shadows += 1
            hypothesis.shadow = ShadowWorld(
                self.world, self.promise.number, hypothesis.value, hypothesis.probability
            )
            hypothesis.shadow.start()
        else:
            hypothesis.record.outcome = "declined"

    def reconsider(self) -> None:
        """A guess before this bet was confirmed, so that it is likelier now: ask the gate again."""
        for hypothesis in self._hypotheses:
            if hypothesis.shadow is not None:
                for bet in _bets_in(hypothesis.shadow):
                    bet.reconsider()
            elif hypothesis.record is not None and not self._resolved and not self._over:
                self._decide(hypothesis)

    def _stakes(self, hypothesis: Hypothesis) -> Stakes:
        bets, name, step = self._bets, self._guess.site, self.promise.step
        learner = bets.learner
        site, times = learner.site(name), learner.step(step.name)
        hypothesis.probability = learner.belief(name, hypothesis.kind).lower()
        remaining = times.remaining(_elapsed(self.promise.execution, self._run.now()))
        saved = min(site.saving.value, remaining) if site.saving.count else remaining
        cost = site.cost.value if site.cost.count else bets.usual_usd(step)
        return Stakes(
            hypothesis.probability * self.world.probability,
            bets.value_per_second,
            saved,
            cost,
            site.spent.value if site.spent.count else 1.0,
            bets.queue_usd() + bets.value_per_second * BET_OVERHEAD_SECONDS,
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
        for hypothesis in self._hypotheses:
            right = promise.error is None and freeze(hypothesis.value) == outcome
            if hypothesis.record is not None and hypothesis.record.outcome == "open":
                self._settle(hypothesis, hypothesis.record, right)
        if self.world.committed:
            self.learn()
        for bet in _bets_in(self.world):
            if bet._covered and not bet._resolved and not self.running:
                bet.consider()

    def _settle(self, hypothesis: Hypothesis, record: BetRecord, right: bool) -> None:
        shadow, hypothesis.shadow = hypothesis.shadow, None
        assert shadow is not None
        record.outcome = "won" if right else "lost"
        record.resolved = self._run.now()
        record.saved_seconds = min(shadow.active_seconds, record.resolved - record.placed) if right else 0.0
        if right:
            self._bets.shadows -= 1
            shadow.merge_into(self.world)
        else:
            # After the committed world has had its turn: what it needs of the shadow's work, it has then.
            asyncio.get_running_loop().call_soon(self._lose, record, shadow)

    def _lose(self, record: BetRecord, shadow: ShadowWorld) -> None:
        self._kill(record, shadow)
        self._bets.lost(record)

    def _kill(self, record: BetRecord, shadow: ShadowWorld) -> None:
        self._bets.shadows -= shadow.alive
        record.spent_usd = shadow.kill()

    def learn(self) -> None:
        """The committed world is past this guess: score every prediction, bet on or not."""
        promise, bets, name = self.promise, self._bets, self._guess.site
        if promise.error is not None or self._over:
            return
        self._over = True
        value = promise.result()
        outcome = freeze(value)
        for hypothesis in self._hypotheses:
            right = freeze(hypothesis.value) == outcome
            bets.learner.observe(name, hypothesis.kind, right)
            record = hypothesis.record
            if record is None:
                continue
            bets.learner.site(name).realised.append(record.realised_usd(right))
            if record.outcome == "declined":
                bets.record.bets.append(record)
        self._predictor.learn(self._call, value)
        bets.passed(name, promise.number)

    def move_to(self, world: World, number: int) -> None:
        """Its world was confirmed and is part of `world` now."""
        present = cast("Bet | None", world.bets.get(number))
        if present is not None and not present._covered:
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
        for hypothesis in self._hypotheses:
            shadow, hypothesis.shadow = hypothesis.shadow, None
            record = hypothesis.record
            if record is None:
                continue
            if record.outcome == "open":
                record.outcome = "moot"
            if shadow is not None:
                self._kill(record, shadow)


def _bets_in(world: World) -> list[Bet]:
    return cast("list[Bet]", list(world.bets.values()))


def _elapsed(execution: ExecutionView | None, now: float) -> float:
    """Return the seconds for which the guessed call has run."""
    span = execution.span if execution is not None else None
    return now - span.started if span is not None and span.started is not None else 0.0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
