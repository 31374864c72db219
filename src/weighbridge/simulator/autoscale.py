"""The fleet's own scaling rule under the virtual clock: replicas come when work piles up, and go when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isfinite

from weighbridge.errors import BadInput
from weighbridge.fleet.load.scaling import Scaler, ScalingSettings
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.simulator.gateway import SimulatedGateway
from weighbridge.simulator.simulation import Clock

#: What `--autoscale` calls the settings.
_NAMES = {
    "min": "least",
    "max": "most",
    "high": "high",
    "low": "low",
    "up": "up_after",
    "down": "down_after",
    "settle": "settle",
}


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """`rule` is the fleet's. `startup`: seconds from the decision until a new replica takes requests (it is paid
    for from the decision on); `every`: seconds between two looks at the work."""

    rule: ScalingSettings = field(default_factory=ScalingSettings)
    startup: float = 30.0
    every: float = 1.0

    @staticmethod
    def parse(text: str) -> Autoscaling:
        """Read `min=2,max=8`, and optionally high, low, up, down, settle, startup, every in seconds (see
        `ScalingSettings`). Raises BadInput otherwise."""
        rule, own = ScalingSettings(), Autoscaling()
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            seconds = _number(value, whole=name in ("min", "max"))
            if seconds is None or name not in (*_NAMES, "startup", "every"):
                raise BadInput(
                    f"--autoscale {text!r}: write min=2,max=8, and if need be high=5,low=1,up=2,down=60,settle=10,"
                    "startup=30,every=1 in seconds",
                    param="autoscale",
                )
            if name in ("min", "max"):
                rule = replace(rule, **{_NAMES[name]: int(seconds)})
            elif name in _NAMES:
                rule = replace(rule, **{_NAMES[name]: seconds})  # type: ignore[arg-type]
            else:
                own = replace(own, **{name: seconds})  # type: ignore[arg-type]
        return replace(own, rule=rule).checked()

    def checked(self) -> Autoscaling:
        """Return the settings themselves. Raises BadInput for a rule that cannot work."""
        rule = self.rule
        if not 1 <= rule.least <= rule.most:
            raise BadInput(f"autoscaling from {rule.least} to {rule.most} replicas: write 1 <= min <= max")
        if rule.low >= rule.high:
            raise BadInput(f"autoscaling: low={rule.low:g} must be below high={rule.high:g}")
        if self.every <= 0.0:
            raise BadInput("autoscaling: every must be more than 0 seconds")
        return self


def _number(text: str, *, whole: bool) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0.0 and not (whole and value % 1) else None


class SimulatedAutoscaler:
    """Looks at the work at regular times, as long as anything is still to happen.

    `start(now)` begins to add a replica, `stop(name, now)` lets one go when its last work is done; `starting()`
    counts those that were begun and do not take requests yet.
    """

    def __init__(
        self,
        settings: Autoscaling,
        clock: Clock,
        gateway: SimulatedGateway,
        *,
        start: Callable[[float], None],
        stop: Callable[[str, float], None],
        starting: Callable[[], int],
    ) -> None:
        self._every = settings.every
        self._scaler = Scaler(settings.rule)
        self._clock = clock
        self._gateway = gateway
        self._start, self._stop, self._starting = start, stop, starting

    def step(self, now: float) -> None:
        """Decide as `fleet.autoscale` does: by what waits, and by that and all that is still to be produced."""
        self._gateway.tell(now)
        states = [state for state in self._gateway.states.values() if not state.draining]
        queued, work = self._gateway.desk.backlog_seconds(states, now)
        change = self._scaler.decide(len(states) + self._starting(), queued, work, now)
        if change > 0:
            self._start(now)
        elif change < 0 and states:
            self._stop(min(states, key=_outstanding).name, now)
        if self._clock.pending:
            self._clock.at(now + self._every, self.step)


def _outstanding(state: ReplicaState) -> float:
    return state.outstanding_tokens
