"""Expert-parallel groups under skewed, drifting loads: the slowest GPU sets the step. Pure planner code.

Each step draws the tokens of every expert, the GPUs of a placement get their share, and the step takes as long as
the GPU with most work. Loads follow a power law with a popularity of its own in each layer; neighbouring steps
resemble each other, and popularity drifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weighbridge.cost.experts import ExpertUse, power_law
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.planner.experts.placement import Devices, ExpertPlacement, Floats, gpu_loads, moved_slots
from weighbridge.workload.quantiles import quantile


@dataclass(frozen=True, slots=True)
class ExpertTraffic:
    """tokens: of one step. skew: exponent of the power law. correlation in [0, 1): how much of a step's deviation
    from the mean load carries over to the next. noise: size of that deviation, on a logarithmic scale. drift: share
    of the experts that trade popularity every 1,000 steps."""

    layers: int
    experts: int
    top_k: int
    tokens: int
    skew: float = 1.0
    correlation: float = 0.9
    noise: float = 0.2
    drift: float = 0.0

    def check(self) -> None:
        """Raises BadInput."""
        if min(self.layers, self.tokens, self.top_k) < 1 or self.experts < max(2, self.top_k):
            raise BadInput("a mixture needs layers, tokens, and at least as many experts as a token uses")
        if not 0.0 <= self.correlation < 1.0 or not 0.0 <= self.drift <= 1.0:
            raise BadInput("correlation must be in [0, 1) and drift in [0, 1]")
        if self.skew < 0.0 or self.noise < 0.0:
            raise BadInput("skew and noise must be at least 0")


def fitted_traffic(counts: Floats, top_k: int, tokens: int) -> ExpertTraffic:
    """Return traffic with the skew of measured counts [layers, experts]."""
    layers, experts = counts.shape
    use = ExpertUse.of((counts / counts.sum(axis=1, keepdims=True) * top_k).tolist())
    return ExpertTraffic(layers, experts, top_k, tokens, use.skew)


class LoadGenerator:
    """Tokens per expert [layers, experts] of one step after the other; same generator state, same loads."""

    def __init__(self, traffic: ExpertTraffic, rng: np.random.Generator) -> None:
        """Raises BadInput for impossible traffic."""
        traffic.check()
        self._traffic = traffic
        self._rng = rng
        popularity = np.array(power_law(traffic.experts, traffic.top_k, traffic.skew)) / traffic.top_k
        self._popularity = np.stack([rng.permutation(popularity) for _ in range(traffic.layers)])
        self._deviation = rng.normal(size=self._popularity.shape) * traffic.noise

    def mean_loads(self) -> Floats:
        """Return what a long measurement would show now."""
        return self._popularity * self._traffic.tokens * self._traffic.top_k

    def step(self) -> Floats:
        """Draw the loads of the next step; every token of every layer is in them."""
        traffic, rng = self._traffic, self._rng
        self._drift()
        fresh = rng.normal(size=self._deviation.shape) * traffic.noise
        keep = traffic.correlation
        self._deviation = keep * self._deviation + (1.0 - keep**2) ** 0.5 * fresh
        share = self._popularity * np.exp(self._deviation)
        share /= share.sum(axis=1, keepdims=True)
        loads: Floats = rng.multinomial(traffic.tokens * traffic.top_k, share).astype(np.float64)
        return loads

    def _drift(self) -> None:
        trades = self._rng.poisson(self._traffic.drift * self._traffic.experts / 2000.0, self._traffic.layers)
        for layer, count in enumerate(trades.tolist()):
            for _ in range(count):
                one, other = self._rng.choice(self._traffic.experts, 2, replace=False)
                row = self._popularity[layer]
                row[one], row[other] = row[other], row[one]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: of a step beside its experts, of one token in an expert, of reading one expert's weights."""

    other: float = knob(0.005, "A step beside its experts, in ms.", flag="--other-ms", unit="ms", min=0.0)
    per_token: float = knob(1e-6, "One token in one expert, in us.", flag="--token-us", unit="us", min=0.0)
    per_expert: float = knob(
        6.3e-6, "Reading one expert's weights, in us.", flag="--expert-us", unit="us", min=0.0
    )  # Qwen3-30B-A3B on an RTX PRO 6000, as LLMServingSim measured it


@dataclass(frozen=True, slots=True)
class ExpertRun:
    """Figures of all steps together.

    fetched_experts: expert weights that GPUs fetched because a new placement wants them where they were not; a step
    does not wait for them.
    """

    tokens_per_second: float
    mean_step: float
    p99_step: float
    balancedness: float
    fetched_experts: int


#: A placement for mean loads [layers, experts]; the second argument is what the GPUs hold now (None: nothing).
Place = Callable[[Floats, ExpertPlacement | None], ExpertPlacement]


def simulate(
    traffic: ExpertTraffic,
    devices: Devices,
    place: Place,
    steps: int,
    rng: np.random.Generator,
    times: Times | None = None,
    replace_every: int | None = None,
) -> ExpertRun:
    """Run `steps` steps on the placement that `place` makes of mean loads.

    replace_every: steps after which a new placement is made of the loads seen since the last one; None: never.
    """
    times = times or Times()
    generator = LoadGenerator(traffic, rng)
    placement = place(generator.mean_loads(), None)
    seen = np.zeros((traffic.layers, traffic.experts))
    seconds, even, fetched = np.empty(steps), np.empty(steps), 0
    for step in range(steps):
        loads = generator.step()
        seen += loads
        per_gpu = gpu_loads(loads, placement, devices.gpus)
        seconds[step] = _step_seconds(loads, per_gpu, placement, devices, times)
        even[step] = (per_gpu.mean(axis=1) / per_gpu.max(axis=1)).mean()
        if replace_every and (step + 1) % replace_every == 0:
            after = place(seen + 1.0, placement)  # an expert not seen lately still has to be somewhere
            fetched += int(moved_slots(placement, after, devices.gpus).sum())
            placement, seen = after, np.zeros_like(seen)
    total = float(seconds.sum())
    return ExpertRun(
        tokens_per_second=traffic.tokens * steps / total,
        mean_step=total / steps,
        p99_step=quantile(seconds, 0.99),
        balancedness=float(even.mean()),
        fetched_experts=fetched,
    )


def _step_seconds(
    loads: Floats, per_gpu: Floats, placement: ExpertPlacement, devices: Devices, times: Times
) -> float:
    """Each layer waits for its slowest GPU: the weights of the experts with tokens, and the tokens themselves."""
    used = np.take_along_axis(loads, placement.physical_to_logical, axis=1) > 0
    read = used.reshape(len(loads), devices.gpus, -1).sum(axis=2)
    slowest = (read * times.per_expert + per_gpu * times.per_token).max(axis=1)
    return times.other + float(slowest.sum())
