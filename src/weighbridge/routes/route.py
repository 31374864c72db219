"""A route at work: a name that stands for places, and what the journeys to them share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weighbridge.fleet.gateway import Gateway
from weighbridge.routes.budget import FREE_OF_CHARGE, Cashier
from weighbridge.routes.caps import Caps
from weighbridge.routes.difficulty.embedders.vectors import Question, Readers, Vector
from weighbridge.routes.errors import CloudDenied, NoPlaceCan
from weighbridge.routes.judge import Draft, Judgement
from weighbridge.routes.leg import WHOLE, LegRun
from weighbridge.routes.place import Place
from weighbridge.routes.policy import Level
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.request import RouteRequest
from weighbridge.routes.settings import RouteSettings
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask

#: Part of the time a client gives that may be spent on looking at the prompt.
LARGEST_SHARE = 0.25


class Scorer(Protocol):
    """Difficulty before answering, in [0, 1], from the text and the vectors that are there."""

    def __call__(self, prompt: str, vectors: Mapping[str, Vector] | None = None) -> float: ...


class Judge(Protocol):
    """Confidence in what was held back of a local answer. `samples`: further answers of the edge, if any."""

    def __call__(
        self, prompt: str, body: Mapping[str, Any], draft: Draft, samples: Sequence[str] = ()
    ) -> Judgement: ...


class Observer(Protocol):
    """Told of every request that was answered: shadow evaluation and learning."""

    def threshold(self, default: float) -> float: ...
    def finished(self, request: RouteRequest, ticket: Ticket, answer: str) -> None: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class Route:
    """One route of a gateway, addressed as a model. `places` stand in the order of trust, by their names.

    `clock` is monotonic and in seconds; caps count by it.
    """

    settings: RouteSettings
    gateway: Gateway
    places: Mapping[str, Place]
    cashier: Cashier
    guard: Guard
    caps: Caps
    judge: Judge
    scorer: Scorer | None = None
    readers: Readers | None = None
    observer: Observer | None = None
    clock: Callable[[], float] = time.monotonic
    _levels: dict[Level, list[Place]] = field(init=False)

    def __post_init__(self) -> None:
        self._levels = {
            level: [place for place in self.places.values() if place.level is level] for level in Level
        }

    @property
    def name(self) -> str:
        return self.settings.name

    def finished(self, request: RouteRequest, ticket: Ticket, answer: str | None) -> None:
        """A journey has ended and settled everything. `answer`: its text, where it ended well."""
        self.gateway.open_journeys -= 1
        self.gateway.finished(ticket)
        if self.observer is not None and answer:
            self.observer.finished(request, ticket, answer)

    def told(self) -> dict[str, Any]:
        """Its places and its bounds in words, as plain JSON."""
        places = [
            {
                "name": name,
                "level": place.level.value,
                "model": place.settings.shown_model,
                "healthy": place.healthy,
            }
            for name, place in self.places.items()
        ]
        return {"places": places, "words": ", ".join(self._bounds())}

    def _bounds(self) -> Iterator[str]:
        settings, caps = self.settings, self.caps.settings
        if self.scorer is not None:
            yield f"the cloud from a difficulty of {self.threshold():.2f}"
        if settings.cascade.enabled:
            yield f"the cloud below a confidence of {settings.cascade.threshold:.2f}"
        if caps.cloud_per_minute is not None:
            yield f"at most {caps.cloud_per_minute:g} a minute and tenant to the cloud"
        if caps.cloud_share is not None:
            yield f"at most {caps.cloud_share:.0%} of a tenant's requests to the cloud"
        for budget in self.cashier.ledger.budgets.concerned("", self.name):
            if budget.tenant is None:
                yield f"{budget.name} of ${budget.allowance.usd:g}"

    async def close(self) -> None:
        if self.observer is not None:
            await self.observer.close()
        self.guard.close()
        if self.readers is not None:
            await self.readers.close()

    # -- facts that decisions are made of --------------------------------------------------------------

    async def score(self, request: RouteRequest) -> tuple[float | None, str]:
        """The score, and what it was made from where that may differ from prompt to prompt."""
        if self.scorer is None or self.readers is None:
            return (None if self.scorer is None else self.scorer(request.prompt)), ""
        ask = request.ask
        question = Question(
            request.prompt, request.body, request.size, ask.tenant, ask.priority, ask.cache_salt
        )
        longest = LARGEST_SHARE * (request.deadline_seconds or self.settings.timeout)
        reading = await self.readers.read(question, longest)
        return self.scorer(request.prompt, reading.vectors), str(reading)

    def threshold(self) -> float:
        default = 0.7 if self.settings.threshold is None else self.settings.threshold
        return default if self.observer is None else self.observer.threshold(default)

    def refusal(self, tenant: str, usd: float) -> str:
        """Why caps or budgets keep a request from the cloud; empty when they do not."""
        capped = self.caps.refusal(tenant, self.clock())
        return capped or self.cashier.refusal(tenant, self.name, usd)

    def other(self, place: Place) -> Place | None:
        """The place at the other side of the boundary that an answer's cost is compared with."""
        opposite = self._levels[Level.CLOUD if place.level is Level.EDGE else Level.EDGE]
        return opposite[0] if opposite else None

    # -- a second answer, in the background ------------------------------------------------------------

    async def second_answer(self, request: RouteRequest, level: Level) -> str:
        """The text of a whole answer from the other side of the boundary, paid for. Raises Refused.

        What it may cost is reserved first, and it takes its place under the tenant's caps, as any request does.
        """
        places, tenant, reservation = self._levels[level], request.ask.tenant, FREE_OF_CHARGE
        if not places:
            raise NoPlaceCan(f"the route has no place of level {level}")
        place = places[0]
        if level is Level.CLOUD:
            now, usd = self.clock(), place.max_usd(request)
            reserved = self.caps.refusal(tenant, now) or await self.cashier.reserve(tenant, self.name, usd)
            if isinstance(reserved, str):
                raise CloudDenied(reserved)
            self.caps.sent(tenant, now)
            reservation = reserved
        ends = asyncio.get_running_loop().time() + self.settings.timeout
        ask = place.ask(request, request.fields(level))
        run = LegRun(place, ask, self.cashier, reservation, ends=ends, purpose="shadow")
        try:
            await run.start(WHOLE)
        finally:
            await run.close()
            ticket = self.new_ticket(request.ask)  # nobody asked for it: metrics count it, no store has it
            ticket.id, ticket.legs, ticket.finished = ask.id, [run.leg], time.time()
            self.gateway.tell(ticket)
        return run.text

    def new_ticket(self, ask: Ask) -> Ticket:
        """The ticket of a request, as it stands at the door."""
        first = next(iter(self.places.values()))
        return Ticket(
            id=ask.id,
            tenant=ask.tenant,
            model=self.name,
            prompt_hash=ask.prompt_hash,
            prompt_tokens=0,
            max_tokens=ask.max_tokens or first.settings.max_tokens,
            priority=ask.priority,
            choices=ask.choices,
            arrived=time.time(),
            replica="",
            route=ask.route,
        )
