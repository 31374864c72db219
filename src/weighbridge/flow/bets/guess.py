"""`await guess(x)`: go on with a value that is only expected, while the real one is on its way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from weighbridge.errors import BadInput
from weighbridge.flow.bets.bet import Bet
from weighbridge.flow.bets.predict import FunctionPredictor, Predictor
from weighbridge.flow.identity import Pending
from weighbridge.flow.promise import Promise
from weighbridge.flow.step import current_world

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
