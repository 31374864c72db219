"""First tokens of a light tenant beside one that asks for all it can get, in one class: the scheduler, a virtual clock.

python benchmarks/heavy_tenant.py [--seconds 120] [--seats 16] [--seed 1]

The light tenant sends chats of 30 to 100 tokens with 24 to write, one a second; the heavy one has twelve requests of
1,200 tokens with 200 to write under way all the time. Iterations take what the default step cost says; nothing is
computed.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field

import numpy as np

from weighbridge.cost import DEFAULT_STEP_COST
from weighbridge.engine.batch import Sampled
from weighbridge.engine.request import Request, SamplingParams
from weighbridge.engine.schedule.scheduler import Scheduler
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings

HEAVY_AT_ONCE, HEAVY_PROMPT, HEAVY_OUTPUT = 12, 1200, 200
LIGHT_PROMPT, LIGHT_OUTPUT = (30, 100), 24


class _Costs:
    cost = DEFAULT_STEP_COST


@dataclass
class _Site:
    """A scheduler, its clock, and who waits for a first token since when."""

    scheduler: Scheduler
    draw: random.Random
    now: float = 0.0
    sent: int = 0
    heavy: int = 0  # under way
    light: dict[str, float] = field(default_factory=dict)  # without a token yet, and since when
    first: list[float] = field(default_factory=list)

    def send(self, tenant: str, prompt: int, output: int) -> str:
        self.sent += 1
        tokens = [self.draw.randrange(1000) for _ in range(prompt)]
        params = SamplingParams(max_tokens=output)
        request = Request(f"{tenant}{self.sent}", tokens, params, self.now, tenant=tenant)
        self.scheduler.add(request, self.now)
        return request.id

    def step(self) -> None:
        batch = self.scheduler.schedule(self.now)
        self.now += DEFAULT_STEP_COST.seconds(*batch.work)
        tokens = [[1] if piece.samples else [] for piece in batch.slices]
        for one in self.scheduler.update(batch, Sampled(tokens, [None] * len(tokens)), self.now):
            since = self.light.pop(one.request.id, None)
            if since is not None:
                self.first.append(self.now - since)
            self.heavy -= one.finish_reason is not None and one.request.tenant == "heavy"


def run(seconds: float, seats: int, seed: int, heavy: bool, patience: float) -> list[float]:
    """Seconds until each first token of the light tenant."""
    settings = SchedulerSettings(
        max_model_len=2048,
        num_blocks=4096,
        max_sequences=seats,
        max_batch_tokens=128,
        speculate=False,
        tenant_patience=patience,
    )
    site, due = _Site(Scheduler(settings, _Costs()), random.Random(seed)), 0.0
    while site.now < seconds:
        while due <= site.now:
            site.light[site.send("light", site.draw.randint(*LIGHT_PROMPT), LIGHT_OUTPUT)] = due
            due += site.draw.expovariate(1.0)
        while heavy and site.heavy < HEAVY_AT_ONCE:
            site.send("heavy", HEAVY_PROMPT, HEAVY_OUTPUT)
            site.heavy += 1
        if site.scheduler.has_work():
            site.step()
        else:
            site.now = due
    return site.first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of the virtual clock")
    parser.add_argument("--seats", type=int, default=16, help="requests that run at one time")
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    for name, heavy, patience in (
        ("quiet", False, 0.5),
        ("beside the heavy one", True, 0.5),
        ("the same, tenant_patience 0", True, 0.0),
    ):
        times = np.array(run(told.seconds, told.seats, told.seed, heavy, patience)) * 1e3
        p50, p99 = np.percentile(times, (50, 99))
        print(f"{name:<28} {len(times):4} chats   first token p50 {p50:5.0f} ms   p99 {p99:5.0f} ms")


if __name__ == "__main__":
    main()
